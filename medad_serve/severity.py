"""How well a predicted severity agrees: mean absolute error and rank correlation, with intervals by patient."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.stats import spearmanr

from medad_serve.metrics import RESAMPLES, Cell, Floats, Mask, Resamples, estimate

RING = 0.05
"""Width of the ring about a defect, as a share of the image's short side."""
_NARROWEST = 5
"""Pixels; in a narrower ring lies mostly the blurred edge of the defect."""
_FEWEST = 3
"""Values of which a rank correlation is told."""


def weighted_ranks(values: Floats, weights: Floats) -> Floats:
    """Return the mean rank of each value ``(n,)`` where it is there as often as ``weights (n, b)`` say, ``(n, b)``."""
    _, group = np.unique(values, return_inverse=True)
    sizes = np.zeros((int(group.max()) + 1, weights.shape[1]))
    np.add.at(sizes, group, weights)
    before = np.cumsum(sizes, axis=0) - sizes
    return np.asarray((before + (sizes + 1) / 2)[group])


def weighted_spearman(a: Floats, b: Floats, weights: Floats) -> Floats:
    """Return the rank correlation of two lists ``(n,)`` under each column of ``weights (n, b)``; NaN where one ties."""
    x, y = weighted_ranks(a, weights), weighted_ranks(b, weights)
    total = weights.sum(axis=0)
    x, y = x - (weights * x).sum(axis=0) / total, y - (weights * y).sum(axis=0) / total
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = np.sqrt((weights * x * x).sum(axis=0) * (weights * y * y).sum(axis=0))
        return np.asarray(np.where(spread > 0, (weights * x * y).sum(axis=0) / spread, np.nan))


def rank_correlation(
    a: Floats, b: Floats, patients: Sequence[str], *, resamples: int = RESAMPLES, seed: int = 0
) -> Cell:
    """Return Spearman's correlation of two lists ``(n,)``; None of fewer than 3 values, or where all of one tie."""
    if len(a) < _FEWEST or not np.ptp(a) or not np.ptp(b):
        return {"value": None, "low": None, "high": None}
    drawn = Resamples(np.ones(len(a), np.int64), patients, resamples, seed)
    found = np.concatenate([weighted_spearman(a, b, weights) for weights in drawn])
    return estimate(float(spearmanr(a, b).statistic), found)


def mean_error(
    predicted: Floats, true: Floats, patients: Sequence[str], *, resamples: int = RESAMPLES, seed: int = 0
) -> Cell:
    """Return the mean absolute error of predictions ``(n,)``."""
    error = np.abs(predicted - true)
    drawn = Resamples(np.ones(len(error), np.int64), patients, resamples, seed)
    found = np.concatenate([error @ weights / weights.sum(axis=0) for weights in drawn])
    return estimate(float(error.mean()), found)


def contrast(image: NDArray[np.float32], mask: Mask) -> float:
    """Return how far the mean inside a mask lies from that of the ring about it, in units of ``image``.

    Both ``(H, W)`` or ``(D, H, W)``; NaN where the mask is empty or leaves no ring.
    """
    reach = max(_NARROWEST, round(RING * min(mask.shape)))
    ring = ndimage.binary_dilation(mask, iterations=reach) & ~mask
    if not mask.any() or not ring.any():
        return float("nan")
    return float(abs(image[mask].mean(dtype=np.float64) - image[ring].mean(dtype=np.float64)))
