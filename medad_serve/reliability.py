"""Whether probabilities mean what they say: calibration error and Brier score, with intervals by patient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torchmetrics.functional.classification import binary_calibration_error

from medad_serve.metrics import RESAMPLES, Cell, Floats, Labels, Resamples, estimate

BINS = 15
"""Of equal width, as of Guo et al., ICML 2017."""


@dataclass(frozen=True)
class Bins:
    """Items gathered by their probability; bins without items are left out."""

    mean: Floats
    """Mean probability of each bin."""
    share: Floats
    """Share of its items that are abnormal."""
    count: Labels
    """Items of each bin."""


def bins_of(probability: Floats, labels: Labels) -> Bins:
    """Gather items ``(N,)`` in bins of equal width."""
    place = _places(probability)
    count = np.bincount(place, minlength=BINS)
    there = count > 0
    mean = np.bincount(place, probability, BINS)[there] / count[there]
    share = np.bincount(place, labels, BINS)[there] / count[there]
    return Bins(mean, share, count[there])


def _places(probability: Floats) -> Labels:
    return np.minimum((probability * BINS).astype(np.int64), BINS - 1)


def is_probability(values: Floats) -> bool:
    """Whether all values lie in 0..1."""
    return bool(((values >= 0) & (values <= 1)).all())


def calibration_figures(
    probability: Floats, labels: Labels, patients: Sequence[str], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Cell]:
    """Return ``ece`` (expected calibration error, mean over items of the bins' gaps) and ``brier``."""
    gap = probability - labels
    member = np.eye(BINS)[_places(probability)]
    ece: list[Floats] = []
    brier: list[Floats] = []
    for weights in Resamples(labels, patients, resamples, seed):
        total = weights.sum(axis=0)
        ece.append(np.abs((member * gap[:, None]).T @ weights).sum(axis=0) / total)
        brier.append(gap**2 @ weights / total)
    exact = binary_calibration_error(torch.from_numpy(probability), torch.from_numpy(labels), n_bins=BINS)
    return {
        "ece": estimate(float(exact), np.concatenate(ece)),
        "brier": estimate(float(np.mean(gap**2)), np.concatenate(brier)),
    }
