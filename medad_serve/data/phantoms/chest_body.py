"""A posterior-anterior chest: soft tissue, lungs, heart and diaphragm as what they take from the beam.

Lengths are in half chest widths, ``u`` to the right of the film (the patient's left) and ``v`` downward from the
middle of the chest. Attenuation is logarithmic; a healthy adult's abdomen takes about 1.3, the lungs about 0.3.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from medad_serve.data.phantoms.drawing import Floats, floats, opacity

APEX, EQUATOR = 0.36, 0.3
"""Where the lung's tip lies sideways, and the row below which it widens no more."""
_EDGE = 0.025


@dataclass(frozen=True)
class Chest:
    """What differs between patients, in half chest widths unless told otherwise."""

    half_mm: float
    """Half the chest's width, mm."""
    stout: float
    """Soft tissue over the mean."""
    width: float
    """Factor on the lungs' width."""
    apex: float
    """Row of the lungs' tips."""
    domes: tuple[float, float]
    """Rows of the diaphragm, on the film's left and right."""
    heart: float
    """Factor on its size; so is its tilt in radians."""
    tilt: float
    spine: float
    """By how far the spine bends."""
    ribs: float
    """Row of the first rib, and how far one lies below the other."""
    rib_step: float
    bones: float
    """Factor on what bones take."""
    bubble: float
    """Air in the stomach, 0 for none."""
    turn: float
    """Of the patient on the film, radians; then the shift."""
    shift: tuple[float, float]
    seen: float
    """Of the chest along the film's short side."""

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Chest:
        """Draw a patient."""
        deep = rng.normal(0, 0.06)
        apex = rng.uniform(-0.88, -0.8)
        return cls(
            half_mm=rng.uniform(105, 150),
            stout=rng.normal(0, 0.1),
            width=rng.uniform(0.94, 1.03),
            apex=apex,
            domes=(0.5 + deep + rng.normal(0, 0.02), 0.57 + deep + rng.normal(0, 0.03)),
            heart=rng.uniform(0.88, 1.12),
            tilt=rng.uniform(0.4, 0.75),
            spine=rng.normal(0, 0.025),
            ribs=apex - rng.uniform(0.0, 0.06),
            rib_step=rng.uniform(0.148, 0.17),
            bones=rng.uniform(0.8, 1.25),
            bubble=rng.uniform(0.1, 0.4) * (rng.random() < 0.5),
            **_placed(rng),
        )

    def again(self, rng: np.random.Generator) -> Chest:
        """Return the patient on another day: another breath, another place on the film."""
        deep = rng.normal(0, 0.02)
        domes = (self.domes[0] + deep, self.domes[1] + deep)
        return replace(self, domes=domes, bubble=rng.uniform(0.1, 0.4) * (rng.random() < 0.5), **_placed(rng))


def _placed(rng: np.random.Generator) -> dict[str, Any]:
    return {
        "turn": rng.normal(0, 0.025),
        "shift": (rng.normal(0, 0.04), rng.normal(0, 0.04)),
        "seen": rng.uniform(1.95, 2.2),
    }


@dataclass(frozen=True)
class Frame:
    """The film's pixels in the patient's frame, and back."""

    u: Floats
    """``(H, W)``; so is ``v``."""
    v: Floats
    px: float
    """Pixels of one half chest width."""
    chest: Chest

    @classmethod
    def of(cls, chest: Chest, shape: tuple[int, int]) -> Frame:
        """Lay a film of that many rows and columns over a patient."""
        px = min(shape) / chest.seen
        across = (np.arange(shape[1], dtype=np.float32) - (shape[1] - 1) / 2) / px - chest.shift[0]
        down = (np.arange(shape[0], dtype=np.float32)[:, None] - (shape[0] - 1) / 2) / px - chest.shift[1]
        cos, sin = np.cos(chest.turn), np.sin(chest.turn)
        return cls(floats(cos * across + sin * down), floats(cos * down - sin * across), px, chest)

    def pixels(self, u: Any, v: Any) -> Floats:
        """Return (column, row) of points of the patient, ``(points, 2)``."""
        u, v = np.broadcast_arrays(np.asarray(u, np.float32), np.asarray(v, np.float32))
        cos, sin = np.cos(self.chest.turn), np.sin(self.chest.turn)
        across, down = cos * u - sin * v + self.chest.shift[0], sin * u + cos * v + self.chest.shift[1]
        rows, columns = self.u.shape
        return floats(np.stack([across * self.px + (columns - 1) / 2, down * self.px + (rows - 1) / 2], axis=-1))


def _filled(depth: Any) -> Floats:
    """Return how much of a rounded body the beam crosses, of 1, at a depth of so many of its rims."""
    return floats(1 - np.square(1 - np.clip(depth, 0, 1)))


def outer(chest: Chest, v: Any) -> Floats:
    """Return how far from the middle the lungs reach at a row."""
    up = np.clip((EQUATOR - np.asarray(v, np.float32)) / (EQUATOR - chest.apex), 0, 1)
    return floats(APEX + (0.5 * chest.width) * np.sqrt(1 - up**2.5))


def diaphragm(chest: Chest, u: Any) -> Floats:
    """Return the row of the diaphragm at a place; steep at the chest wall."""
    away = (np.abs(u) - 0.36) / 0.5
    fall = np.where(away > 0, 0.36 * np.abs(away) ** 2.2, 0.12 * away**2)
    return floats(np.where(np.asarray(u) < 0, chest.domes[0], chest.domes[1]) + fall)


def lungs(frame: Frame) -> Floats:
    """Return the share of the beam's path that is air of the lungs, ``(H, W)``, heart not yet taken off."""
    chest, u, v = frame.chest, frame.u, frame.v
    up = np.clip((EQUATOR - v) / (EQUATOR - chest.apex), 0, 1)
    inner = APEX - 0.27 * np.sqrt(1 - up**6)
    wall, middle = (outer(chest, v) - np.abs(u)) / 0.22, (np.abs(u) - inner) / 0.12
    below = diaphragm(chest, u) - v
    behind = 0.22 * _filled((below + 0.16) / 0.16)  # the lungs reach down behind the domes
    open_above = _filled(below / 0.07)
    return floats(_filled(wall) * _filled(middle) * np.maximum(open_above, behind) * (v > chest.apex))


def heart(frame: Frame) -> Floats:
    """Return how much heart and great vessels displace the lungs, 0..1, ``(H, W)``."""
    chest, u, v = frame.chest, frame.u, frame.v
    size, tilt = chest.heart, chest.tilt
    drop = 0.5 * (sum(chest.domes) - 1.07)
    du, dv = u - 0.13 * size, v - 0.24 - drop
    along, across = np.cos(tilt) * du + np.sin(tilt) * dv, np.cos(tilt) * dv - np.sin(tilt) * du
    ventricles = (1 - np.hypot(along / (0.45 * size), across / (0.32 * size))) * 0.33
    atrium = 0.19 * size - np.hypot(u + 0.1, (v - 0.26 - drop) / 1.25)
    knob = 0.1 - np.hypot(u - 0.13, v + 0.34)
    band = np.minimum(0.13 + 0.05 * np.clip(v + 0.4, 0, 1) - np.abs(u - 0.01), v - chest.apex + 0.2)
    depth = np.maximum.reduce([ventricles, atrium, knob, band])
    return opacity(depth, 2 * _EDGE)


def soft_tissue(frame: Frame) -> Floats:
    """Return what trunk, neck and shoulders take before the lungs' air is taken off, ``(H, W)``."""
    chest, u, v = frame.chest, frame.u, frame.v
    flare = 0.45 / (1 + np.exp((v + 0.58) / 0.13))
    half = 1.0 + 0.06 * v + 0.12 * chest.stout + flare
    shoulder = v + 1.0 - 0.3 * np.maximum(np.abs(u) - 0.26, 0) ** 1.3
    neck = 0.27 - np.abs(u)
    body = opacity(np.minimum(half - np.abs(u), np.maximum(shoulder, neck)), _EDGE)
    across = np.sqrt(np.clip(1.06 - np.square(u / half), 0.0, 1))
    # Above the shoulders the trunk thins to the neck, below the domes liver and stomach fill it.
    thick = 0.62 + 0.38 / (1 + np.exp(-(v + 0.75) / 0.12))
    full = 0.2 * opacity(v - diaphragm(chest, u), 0.12) * opacity(0.95 - np.abs(u), 0.2)
    return floats(body * ((1.02 + chest.stout) * across * thick + full))


def stomach(frame: Frame) -> Floats:
    """Return the air bubble below the left dome, 0..1, ``(H, W)``."""
    if not frame.chest.bubble:
        return np.zeros_like(frame.u)
    u, v, size = frame.u, frame.v, frame.chest.bubble
    middle = frame.chest.domes[1] + 0.07 + 0.3 * size
    return _filled((1 - np.hypot((u - 0.42) / (0.55 * size), (v - middle) / (0.32 * size))) / 0.5)


def windpipe(frame: Frame) -> Floats:
    """Return the air of trachea and main bronchi, 0..1, ``(H, W)``."""
    u, v = frame.u, frame.v
    trunk = _filled((0.055 - np.abs(u - 0.012)) / 0.05) * opacity(-0.22 - v, 0.05)
    side = np.abs(u - 0.01)
    branch = _filled((0.04 - np.abs(v + 0.24 - 0.75 * side)) / 0.04) * opacity(0.2 - side, 0.05)
    return floats(np.maximum(trunk, 0.6 * branch))
