"""The mean brain at the level of the lateral ventricles, drawn once: tissue, ventricles, sulci and falx."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

import cv2
import numpy as np

from medad_serve.data.phantoms.drawing import Floats, floats

ATLAS = 256
"""Rows and columns of the brain's own frame."""
SPAN = 1.1
"""They reach from -SPAN to SPAN, where 1 is the inner skull; columns go right, rows down."""
BRAIN_MM = (66.0, 86.0)
"""Half axes of the mean brain: structures are drawn in these millimetres."""


@lru_cache(maxsize=1)
def head_atlas() -> Floats:
    """Return the mean brain in its own frame: tissue in -1..1, then mm inside ventricles, sulci and falx."""
    rng = np.random.default_rng(1)  # one brain for everyone: heads differ in the numbers of Head
    axis = np.linspace(-SPAN, SPAN, ATLAS, dtype=np.float32)
    v, u = np.meshgrid(axis, axis, indexing="ij")
    x, y = u * BRAIN_MM[0], v * BRAIN_MM[1]
    tissue = _tissue(rng, u, v, x, y)
    return floats(np.dstack([tissue, _ventricles(x, y), _sulci(rng, u, v, x, y), _falx(x, y)]))


def _segments(x: Floats, y: Floats, points: list[tuple[float, float, float]]) -> Floats:
    """Return mm inside a chain of tapering rods through ``points`` (x, y, half width)."""
    best = np.full(x.shape, -1e3, dtype=np.float32)
    for (x0, y0, w0), (x1, y1, w1) in pairwise(points):
        along = ((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / ((x1 - x0) ** 2 + (y1 - y0) ** 2)
        t = np.clip(along, 0, 1)
        best = np.maximum(best, w0 + t * (w1 - w0) - np.hypot(x - x0 - t * (x1 - x0), y - y0 - t * (y1 - y0)))
    return best


def _ventricles(x: Floats, y: Floats) -> Floats:
    side = np.abs(x)
    frontal = _segments(side, y, [(12, -31, 2.0), (7, -24, 3.6), (3.5, -14, 2.6), (3, -8, 1.0)])
    third = _segments(side, y, [(0, -6, 1.0), (0, 12, 1.6)])
    atrium = _segments(side, y, [(10, 18, 1.2), (17, 26, 3.2), (19, 36, 2.6), (16, 46, 0.6)])
    cistern = _segments(side, y, [(0, 20, 2.6), (5, 22, 1.8)])
    return floats(np.maximum.reduce([frontal, third, atrium, cistern]))


def _sulci(rng: np.random.Generator, u: Floats, v: Floats, x: Floats, y: Floats) -> Floats:
    """Return fissures that run inward from the surface, and the Sylvian fissure on either side."""
    best = np.full(x.shape, -1e3, dtype=np.float32)
    angles = np.linspace(0, 2 * np.pi, 26, endpoint=False) + rng.uniform(-0.07, 0.07, 26)
    for angle in angles:
        depth, bend = rng.uniform(0.1, 0.22), rng.uniform(-0.1, 0.1)
        stops = [(1.0, 0.0, 1.0), (1 - depth / 2, 0.4 * bend, 0.5), (1 - depth, bend, 0.0)]
        rods = [(r * np.cos(angle + b) * BRAIN_MM[0], r * np.sin(angle + b) * BRAIN_MM[1], w) for r, b, w in stops]
        best = np.maximum(best, _segments(x, y, rods))
    sylvian = _segments(np.abs(x), y, [(64, -14, 1.4), (50, -12, 1.0), (44, -4, 0.8), (43, 8, 0.0)])
    return np.maximum(best, sylvian)


def _falx(x: Floats, y: Floats) -> Floats:
    front = _segments(x, y, [(0, -90, 1.0), (0, -38, 0.2)])
    return np.maximum(front, _segments(x, y, [(0, 50, 0.2), (0, 90, 1.2)]))


def _tissue(rng: np.random.Generator, u: Floats, v: Floats, x: Floats, y: Floats) -> Floats:
    """Return 1 for grey matter and -1 for white: a folded ribbon under the surface, and the deep nuclei."""
    folds = cv2.GaussianBlur(rng.standard_normal(x.shape, dtype=np.float32), (0, 0), 5)
    folds *= np.float32(0.16) / folds.std()
    ribbon = np.clip((np.hypot(u, v) + folds - 0.84) / 0.08, -1, 1)
    side = np.abs(x)
    lentiform = _segments(side, y, [(20, -16, 3.0), (27, -4, 6.0), (24, 6, 3.0)])
    thalamus = _segments(side, y, [(7, 2, 4.0), (11, 10, 6.0)])
    caudate = _segments(side, y, [(13, -24, 3.0), (10, -14, 2.0)])
    nuclei = np.maximum.reduce([lentiform, thalamus, caudate])
    insula = _segments(side, y, [(41, -14, 2.5), (40, 8, 2.5)])
    grey = np.maximum(np.clip(nuclei / 2, -1, 1) * 0.8, np.clip(insula / 2, -1, 1))
    return floats(cv2.GaussianBlur(floats(np.maximum(ribbon, grey)), (0, 0), 1.5))
