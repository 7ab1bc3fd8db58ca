"""A chest film: what the detector measures behind a patient, and the curve by which a scanner shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from medad_serve.data.phantoms.chest_body import Frame, heart, lungs, soft_tissue, stomach, windpipe
from medad_serve.data.phantoms.chest_bones import bones, vessels
from medad_serve.data.phantoms.chest_opacities import Opacity, filled
from medad_serve.data.phantoms.drawing import Floats, Mask, floats

CurveKind = Literal["LINEAR", "SIGMOID", "LUT"]
CURVES: tuple[CurveKind, ...] = ("LINEAR", "SIGMOID", "LUT")
SIDES = (224, 320)
"""Shortest and longest short side, px."""
RATIOS = (0.85, 1.4)
"""Width over height."""
_AIR = 0.62
"""What the lungs' air takes off where they are thickest."""
_MARKED = 0.1
"""Least change of attenuation that is marked in a mask."""


@dataclass(frozen=True)
class Curve:
    """How attenuation becomes brightness."""

    kind: CurveKind
    """LINEAR and SIGMOID of PS3.3 C.11.2.1.2 and C.11.2.1.3; LUT is the S of a film, with toe and shoulder."""
    center: float
    """In attenuation; so is ``width``."""
    width: float

    @classmethod
    def draw(cls, rng: np.random.Generator, kind: CurveKind) -> Curve:
        """Draw what a scanner is set to."""
        wider = 1.25 if kind == "SIGMOID" else 1.0
        return cls(kind, rng.normal(0.78, 0.06), wider * rng.uniform(1.15, 1.5))

    def show(self, level: Floats) -> Floats:
        """Return brightness 0..1 of attenuation of any shape."""
        away = (level - np.float32(self.center)) / np.float32(self.width)
        if self.kind == "SIGMOID":
            return floats(1 / (1 + np.exp(-4 * away)))
        linear = np.clip(away + np.float32(0.5), 0, 1)
        return floats(linear if self.kind == "LINEAR" else 0.4 * linear + 0.6 * linear**2 * (3 - 2 * linear))


def draw_shape(rng: np.random.Generator) -> tuple[int, int]:
    """Draw rows and columns of a film."""
    short, ratio = rng.integers(*SIDES, endpoint=True), np.exp(rng.uniform(*np.log(RATIOS)))
    return (int(short), round(short * ratio)) if ratio >= 1 else (round(short / ratio), int(short))


def chest_film(rng: np.random.Generator, frame: Frame, what: Opacity | None = None) -> tuple[Floats, Mask]:
    """Return attenuation ``(H, W)`` as measured, and where an opacity changed it (nowhere in a healthy chest)."""
    displaced = 1 - 0.9 * heart(frame)
    air = lungs(frame) * displaced
    gone = air * filled(frame, what) if what is not None else np.zeros_like(air)
    blood = vessels(rng, frame) * np.clip(3 * air, 0, 1) * (1 - 0.7 * gone / np.maximum(air, 1e-3))
    hollow = _AIR * (air - gone) + 0.2 * windpipe(frame) + 0.35 * stomach(frame)
    soft = soft_tissue(frame)
    level = soft + bones(frame) * np.clip(4 * soft, 0, 1) + blood - hollow
    level = _marked_side(rng, _blotched(rng, np.maximum(level, 0)))
    blurred = floats(cv2.GaussianBlur(level, (0, 0), 0.7))
    return blurred + _noise(rng, blurred), np.asarray(_AIR * gone > _MARKED)


def _blotched(rng: np.random.Generator, level: Floats) -> Floats:
    """Return it with the unevenness of fat and muscle."""
    rows, columns = level.shape
    coarse = floats(rng.standard_normal((9, 9)) * 0.035)
    return floats(level * (1 + cv2.resize(coarse, (columns, rows), interpolation=cv2.INTER_CUBIC)))


def _marked_side(rng: np.random.Generator, level: Floats) -> Floats:
    """Return it with the side marker of lead, which most films have, in a corner above."""
    lead = np.zeros(level.shape, np.uint8)
    size, rows, columns = float(rng.uniform(0.4, 0.8)) * min(level.shape) / 256, *level.shape
    place = (round(columns * rng.uniform(0.03, 0.1)), round(rows * rng.uniform(0.12, 0.3)))
    if rng.random() < 0.7:
        cv2.putText(lead, "R", place, cv2.FONT_HERSHEY_SIMPLEX, size, 255, max(1, round(2 * size)), cv2.LINE_AA)
    return floats(np.maximum(level, 1.9 / 255 * lead))


def _noise(rng: np.random.Generator, level: Floats) -> Floats:
    """Return the quanta's noise: more where less comes through, a little correlated by the screen."""
    white = rng.standard_normal(level.shape, dtype=np.float32)
    taps = np.array([0.15, 0.7, 0.15], dtype=np.float32)
    grain = cv2.sepFilter2D(white, -1, taps, taps / np.float32((taps**2).sum()))
    return floats(grain * 0.009 * np.exp(0.5 * level))
