"""One axial head-CT slice through the lateral ventricles, drawn in HU from a dozen numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import cv2
import numpy as np

from medad_serve.data.phantoms.drawing import Floats, Mask, floats, over
from medad_serve.data.phantoms.head_atlas import ATLAS, SPAN, head_atlas

SIZE = 512
BRAIN_HU = (25.0, 40.0)
HAEMORRHAGE_HU = (55.0, 75.0)
HAEMORRHAGE_MM = (5.0, 30.0)

_HALF = SIZE // 2  # anatomy is drawn at half size and enlarged: four times faster, and as soft as a scanner
_EDGE_MM = 1.4  # an edge of the anatomy rises over this length
_FILLED = 0.88  # share of the image's height that the skull takes


@dataclass(frozen=True)
class Haemorrhage:
    """A bleed: ``row``, ``col`` of its centre in px, the diameter of a disc of its area in mm, its HU."""

    row: float
    col: float
    diameter_mm: float
    hu: float
    elongation: float = 0.1
    """Relative amplitude of the second harmonic of its outline (an ellipse, nearly)."""
    lobing: float = 0.04
    """Relative amplitude of the third harmonic."""
    angle: float = 0.0
    """Radians."""


@dataclass(frozen=True)
class Head:
    """What differs between patients; lengths in mm, angles in radians, values in HU.

    Heads differ in size, brightness and ventricles as people do. In pixels their outlines differ little, far
    less than people's: the bones' edges are so bright that a small autoencoder needs many thousand
    different heads to follow wider ones, and a first try of the product should take a minute.
    """

    spacing_mm: float
    half_width_mm: float
    """Of the outer skull; so is ``half_length_mm``."""
    half_length_mm: float
    roundness: float
    """Exponent of the superellipse; 2 is an ellipse."""
    rotation: float
    shift_mm: tuple[float, float]
    """Of the head's centre from the image's: right, down."""
    skull_mm: float
    ventricle_mm: float
    """By how much the ventricles lie outside their mean outline."""
    sulci_mm: float
    """By how much the sulci do."""
    brain_hu: float
    contrast_hu: float
    """Grey matter over white matter."""
    csf_hu: float
    noise_hu: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Head:
        """Draw a patient."""
        length = rng.uniform(88.0, 98.0)
        # A head fills nearly the same part of every image, because the field of view is fitted to it.
        fitted = 2 * length / (_FILLED * SIZE)
        return cls(
            spacing_mm=round(fitted * rng.uniform(0.998, 1.002), 4),
            half_width_mm=length * rng.uniform(0.785, 0.795),
            half_length_mm=length,
            roundness=rng.uniform(2.23, 2.27),
            rotation=np.deg2rad(rng.uniform(-0.5, 0.5)),
            shift_mm=(rng.uniform(-0.25, 0.25), rng.uniform(-0.25, 0.25)),
            skull_mm=length * rng.uniform(0.067, 0.073),
            ventricle_mm=rng.uniform(-1.0, 1.2),
            sulci_mm=rng.uniform(-0.3, 0.4),
            brain_hu=rng.uniform(29.5, 33.5),
            contrast_hu=rng.uniform(3.5, 4.5),
            csf_hu=rng.uniform(6.0, 11.0),
            noise_hu=rng.uniform(3.6, 4.4),
        )

    def neighbour(self, rng: np.random.Generator) -> Head:
        """Return a slice a few millimetres away: a little wider or narrower, other ventricles."""
        scale = rng.uniform(0.999, 1.001)
        return replace(
            self,
            half_width_mm=self.half_width_mm * scale,
            half_length_mm=self.half_length_mm * scale,
            ventricle_mm=self.ventricle_mm + rng.uniform(-0.3, 0.3),
            sulci_mm=self.sulci_mm + rng.uniform(-0.1, 0.1),
        )


def head_ct_slice(rng: np.random.Generator, head: Head, haemorrhage: Haemorrhage | None = None) -> tuple[Floats, Mask]:
    """Draw a slice: float32 HU (512, 512) and the mask of the haemorrhage (empty without one)."""
    values, _ = _anatomy(rng, head)
    values = floats(cv2.resize(values, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR))
    mask = np.zeros((SIZE, SIZE), dtype=np.bool_)
    if haemorrhage is not None:
        opacity = _outline(haemorrhage, head.spacing_mm)
        values += opacity * (np.float32(haemorrhage.hu) - values)
        mask = opacity > 0.5
    return values + _noise(rng, head.noise_hu), mask


def draw_haemorrhage(rng: np.random.Generator, head: Head) -> Haemorrhage:
    """Draw a bleed of any size, anywhere it lies wholly in the parenchyma (sulci apart)."""
    diameter = rng.uniform(*HAEMORRHAGE_MM)
    _, parenchyma = _anatomy(np.random.default_rng(0), head)
    half_px = 2 * head.spacing_mm
    depth_mm = cv2.distanceTransform(parenchyma.astype(np.uint8), cv2.DIST_L2, 5) * half_px
    # The outline swings past the mean radius; where even the widest place is too narrow, take the widest.
    needed = min(1.2 * diameter / 2 + 1.0, float(depth_mm.max()))
    places = np.argwhere(depth_mm >= needed)
    row, col = places[rng.integers(len(places))] * 2 + 0.5
    return Haemorrhage(
        row=float(row),
        col=float(col),
        diameter_mm=diameter,
        hu=rng.uniform(*HAEMORRHAGE_HU),
        elongation=rng.uniform(0.0, 0.14),
        lobing=rng.uniform(0.0, 0.05),
        angle=rng.uniform(0, np.pi),
    )


def _anatomy(rng: np.random.Generator, head: Head) -> tuple[Floats, Mask]:
    """Return noise-free HU at half size, and where the parenchyma lies."""
    x, y = _head_frame(head)
    radius = np.hypot(x, y) + 1e-3
    # Narrower in front (up) than behind, as heads are.
    u, v = x / (head.half_width_mm * (1 + 0.07 * y / head.half_length_mm)), y / head.half_length_mm
    level = (np.abs(u) ** head.roundness + np.abs(v) ** head.roundness) ** (1 / head.roundness)
    outward = radius * (1 - 1 / (level + 1e-6))  # mm outside the outer skull, along the ray
    front = np.abs(y / radius)
    thickness = head.skull_mm * (0.8 + 0.5 * front**4)
    inner = outward + thickness

    values = np.full((_HALF, _HALF), -1000.0, dtype=np.float32)
    values = _over(values, 5.0 - outward, 25.0)  # skin
    values = _over(values, 3.2 - outward, -70.0)  # fat
    values = _over(values, 1.2 - outward, 20.0)  # muscle, galea
    values = _over(values, -outward, 1400.0)
    values = _over(values, np.minimum(-outward - 0.3 * thickness, inner - 0.3 * thickness), 850.0)  # diploe
    values = _over(values, -inner, head.csf_hu + 8.0)  # the film of fluid and dura

    scale = 1 - head.skull_mm / head.half_length_mm
    tissue, ventricle, sulcus, falx = cv2.split(_in_atlas(floats(u / scale), floats(v / scale)))
    brain = head.brain_hu + head.contrast_hu * tissue + _blotches(rng)
    brain = floats(np.clip(brain, *BRAIN_HU))
    brain = _over(brain, sulcus + np.float32(head.sulci_mm), head.csf_hu + 7.0)
    brain = _over(brain, falx, 42.0)
    brain = _over(brain, ventricle + np.float32(head.ventricle_mm), head.csf_hu)
    values = _over(values, -inner - 1.2, brain)
    parenchyma = (inner < -2.5) & (ventricle + head.ventricle_mm < -0.5)
    return values, cast(Mask, parenchyma)


def _head_frame(head: Head) -> tuple[Floats, Floats]:
    """Return mm right and mm down of the head's centre, turned with it, at half size."""
    step = 2 * head.spacing_mm
    across = (np.arange(_HALF, dtype=np.float32) - (_HALF - 1) / 2) * step
    right, down = across[None, :] - head.shift_mm[0], across[:, None] - head.shift_mm[1]
    cos, sin = np.cos(head.rotation), np.sin(head.rotation)
    return floats(cos * right + sin * down), floats(cos * down - sin * right)


def _in_atlas(u: Floats, v: Floats) -> Floats:
    to_atlas = (ATLAS - 1) / (2 * SPAN)
    return floats(
        cv2.remap(
            head_atlas(),
            floats((u + SPAN) * to_atlas),
            floats((v + SPAN) * to_atlas),
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
    )


def _over(below: Floats, depth_mm: Any, value: Any) -> Floats:
    return over(below, depth_mm, value, _EDGE_MM)


def _blotches(rng: np.random.Generator) -> Floats:
    """Return each slice's own faint, smooth texture in HU at half size."""
    coarse = rng.standard_normal((32, 32), dtype=np.float32) * np.float32(0.6)
    return floats(cv2.resize(coarse, (_HALF, _HALF), interpolation=cv2.INTER_CUBIC))


def _noise(rng: np.random.Generator, sigma_hu: float) -> Floats:
    """Return CT noise: Gaussian, a little correlated between neighbouring pixels by the reconstruction."""
    white = rng.standard_normal((SIZE, SIZE), dtype=np.float32)
    taps = np.array([0.14, 0.72, 0.14], dtype=np.float32)
    gain = np.float32(sigma_hu) / np.float32((taps**2).sum())
    return floats(cv2.sepFilter2D(white, -1, taps, taps * gain))


def _outline(bleed: Haemorrhage, spacing_mm: float) -> Floats:
    """Return the opacity (512, 512) of a bleed: 1 inside, 0 outside, one half on its outline."""
    across = np.arange(SIZE, dtype=np.float32)
    right, down = (across[None, :] - bleed.col) * spacing_mm, (across[:, None] - bleed.row) * spacing_mm
    angle = np.arctan2(down, right) - bleed.angle
    swing = 1 + bleed.elongation * np.cos(2 * angle) + bleed.lobing * np.cos(3 * angle)
    # Harmonics add area; taken back here, so that the area stays that of the disc.
    mean = bleed.diameter_mm / 2 / np.sqrt(1 + (bleed.elongation**2 + bleed.lobing**2) / 2)
    return floats(np.clip((mean * swing - np.hypot(right, down)) / _EDGE_MM + 0.5, 0, 1))
