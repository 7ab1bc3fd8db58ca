"""Pneumonia on a chest film: air that gives way to fluid, a lobe's or in patches, of graded size and density."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import cv2
import numpy as np

from medad_serve.data.phantoms.chest_body import Frame, diaphragm, outer
from medad_serve.data.phantoms.drawing import Floats, floats, opacity

Kind = Literal["lobar", "patchy"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_FISSURE = 0.04  # half chest widths over which a consolidation ends at the lobe's border


@dataclass(frozen=True)
class Opacity:
    """What of the lungs is filled; lengths in half chest widths."""

    kind: Kind
    density: float
    """Share of the air that is gone in its middle, 0..1."""
    spots: tuple[tuple[float, float, float, float], ...]
    """(u, v, half height, half width) of each soft spot."""
    fissure: tuple[float, float, int] | None
    """Of a lobe: row of its border at the middle of the lung, its slope, and 1 where the lobe lies below it."""
    mottle: float
    """How unevenly it is filled; ``seed`` decides how."""
    seed: int

    def again(self, rng: np.random.Generator) -> Opacity:
        """Return it on another film: a little denser or clearer."""
        return replace(self, density=float(np.clip(self.density * rng.uniform(0.9, 1.1), 0, 1)))


def draw_opacity(rng: np.random.Generator, frame: Frame, kind: Kind, grade: float) -> Opacity:
    """Draw one of a kind, of ``grade`` 0 (hardly seen) to 1."""
    density, seed = 0.4 + 0.55 * grade, int(rng.integers(2**31))
    if kind == "patchy":
        count = int(rng.integers(4, 8) + round(6 * grade))
        size = 0.1 + 0.1 * grade
        spots = tuple((*_place(rng, frame), *(size * rng.uniform(0.7, 1.4, 2)).tolist()) for _ in range(count))
        return Opacity(kind, density, spots, None, 0.3, seed)
    side = int(rng.choice((-1, 1)))
    below = int(rng.random() < 0.65)
    border = rng.uniform(-0.2, 0.1)
    top, bottom = frame.chest.apex + 0.15, frame.chest.domes[side > 0]
    row = (border + bottom) / 2 if below else (top + border) / 2
    size = 0.28 + 0.25 * grade
    spot = (side * rng.uniform(0.35, 0.6), row + rng.normal(0, 0.04), size, 1.1 * size)
    return Opacity(kind, density, (spot,), (border, rng.normal(0.1, 0.1), below), 0.15, seed)


def filled(frame: Frame, what: Opacity) -> Floats:
    """Return which share of the air is gone, 0..1, ``(H, W)``."""
    clear = np.ones_like(frame.u)
    for u, v, high, wide in what.spots:
        away = np.square((frame.u - u) / wide) + np.square((frame.v - v) / high)
        clear *= 1 - np.exp(-(away**1.5))
    shape = 1 - clear
    if what.fissure is not None:
        border, slope, below = what.fissure
        depth = frame.v - border - slope * (np.abs(frame.u) - 0.45)
        shape *= opacity(depth if below else -depth, _FISSURE) * (np.sign(frame.u) == np.sign(what.spots[0][0]))
    texture = 1 + what.mottle * _mottle(np.random.default_rng(what.seed), frame)
    return floats(np.clip(what.density * shape * texture, 0, 0.97))


def _place(rng: np.random.Generator, frame: Frame) -> tuple[float, float]:
    """Draw a place within the lungs, away from their edge."""
    chest = frame.chest
    v = rng.uniform(chest.apex + 0.25, min(chest.domes) - 0.02)
    u = float(rng.choice((-1, 1))) * rng.uniform(0.22, float(outer(chest, v)) - 0.12)
    return u, min(v, float(diaphragm(chest, u)) - 0.08)


def _mottle(rng: np.random.Generator, frame: Frame) -> Floats:
    """Return a smooth field of about unit spread, clipped, as coarse as acini and as lobules."""
    rows, columns = frame.u.shape
    total = np.zeros((rows, columns), np.float32)
    for size in (0.06, 0.16):
        grid = rng.standard_normal((round(rows / (size * frame.px)) + 2, round(columns / (size * frame.px)) + 2))
        total += cv2.resize(floats(grid), (columns, rows), interpolation=cv2.INTER_CUBIC)
    return floats(np.clip(0.7 * total, -1.5, 1.5))
