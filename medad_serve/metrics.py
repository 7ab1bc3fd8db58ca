"""How well scores separate and decisions agree: overall and per class, with intervals bootstrapped by patient."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torchmetrics.functional.classification import binary_auroc, binary_average_precision, binary_stat_scores

from medad_serve.calibration import HeldOut
from medad_serve.spec import Interval

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
Mask = NDArray[np.bool_]
Cell = dict[str, float | None]
"""``value``, ``low`` and ``high``; all None where the data do not determine the figure."""
RESAMPLES = 1000
MAX_WEIGHTS = 2**20
"""Weights held at once, 8 MiB: larger blocks leave the cache and are slower."""


def _ranks(scores: Floats) -> torch.Tensor:
    # torchmetrics squashes scores outside [0, 1] through a sigmoid in float32, which can tie distinct ones;
    # ranks keep the order exactly and both metrics depend on the order alone.
    unique, inverse = np.unique(scores, return_inverse=True)
    return torch.from_numpy(inverse / max(1, len(unique) - 1))


def auroc(scores: Floats, labels: Labels) -> float:
    """Area under the ROC curve; NaN where only one class is there."""
    if len(np.unique(labels)) < 2:
        return float("nan")
    return float(binary_auroc(_ranks(scores), torch.from_numpy(labels)))


def auprc(scores: Floats, labels: Labels) -> float:
    """Area under the precision-recall curve as average precision; NaN where only one class is there."""
    if len(np.unique(labels)) < 2:
        return float("nan")
    return float(binary_average_precision(_ranks(scores), torch.from_numpy(labels)))


def decision_figures(tp: Floats, fp: Floats, tn: Floats, fn: Floats) -> dict[str, Floats]:
    """Return what counts of decisions amount to, elementwise; NaN where a figure is not defined.

    Precision is not defined where nothing is called anomalous, precision and F1 not where only one class is there.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        sensitivity = tp / (tp + fn)
        specificity = tn / (tn + fp)
        both = np.where(np.isnan(sensitivity + specificity), np.nan, 1.0)
        return {
            "sensitivity": sensitivity,
            "specificity": specificity,
            "precision": both * tp / (tp + fp),
            "recall": sensitivity,
            "f1": both * 2 * tp / (2 * tp + fp + fn),
            "accuracy": (tp + tn) / (tp + fp + tn + fn),
        }


@dataclass(frozen=True)
class Resamples:
    """Bootstrap over patients, healthy and diseased apart, so that both stay present.

    Iterating yields blocks of weights ``(N, b)``: how often each item is drawn in each resample, ``count``
    columns in all. A figure of a resample follows from its weights, without copying or sorting the items.
    """

    labels: Labels
    patients: Sequence[str]
    count: int = RESAMPLES
    seed: int = 0

    def __iter__(self) -> Iterator[Floats]:
        rng = np.random.default_rng(self.seed)
        names, owner = np.unique(np.array(self.patients), return_inverse=True)
        diseased = np.zeros(len(names), bool)
        diseased[owner[self.labels == 1]] = True
        width = max(1, min(self.count, MAX_WEIGHTS // len(owner)))
        for start in range(0, self.count, width):
            block = min(width, self.count - start)
            drawn = np.zeros((len(names), block))
            for group in (np.flatnonzero(~diseased), np.flatnonzero(diseased)):
                if len(group):
                    picks = rng.integers(0, len(group), (len(group), block)) * block + np.arange(block)
                    drawn[group] = np.bincount(picks.ravel(), minlength=len(group) * block).reshape(-1, block)
            yield drawn[owner]


class Ranking:
    """Scores sorted once: both areas of any resample are then sums along the order."""

    def __init__(self, scores: Floats, labels: Labels) -> None:
        abnormal, normal = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
        self.abnormal = abnormal[np.argsort(scores[abnormal])]
        self.normal = normal[np.argsort(scores[normal])]
        high, low = scores[self.abnormal], scores[self.normal]
        # Of each abnormal: normals below it, normals below or tied, abnormals below it.
        self.below, self.up_to = np.searchsorted(low, high, "left"), np.searchsorted(low, high, "right")
        self.missed = np.searchsorted(high, high, "left")

    def areas(self, weights: Floats) -> dict[str, Floats]:
        """Return ``auroc`` and ``auprc``, each ``(b,)``, of weights ``(N, b)``; NaN where one class has none.

        A tie counts half in AUROC; AUPRC is the average precision of scikit-learn, ties taken together.
        """
        abnormal, normal = weights[self.abnormal], _running(weights[self.normal])
        below, hits = normal[self.below], _running(abnormal)
        alarms = normal[-1] - below
        found = hits[-1] - hits[self.missed]
        with np.errstate(divide="ignore", invalid="ignore"):
            wins = np.einsum("nb,nb->b", abnormal, below + normal[self.up_to])
            # An item that no resample drew may stand at 0 / 0; it weighs nothing.
            precise = abnormal * np.divide(found, found + alarms, out=np.zeros_like(found), where=abnormal > 0)
            both = np.where((hits[-1] > 0) & (normal[-1] > 0), 1.0, np.nan)
            return {
                "auroc": wins / (2 * hits[-1] * normal[-1]),
                "auprc": both * precise.sum(axis=0) / hits[-1],
            }


def _running(weights: Floats) -> Floats:
    """Return running sums ``(n + 1, b)`` of ``(n, b)``, beginning with 0."""
    out = np.zeros((len(weights) + 1, weights.shape[1]))
    np.cumsum(weights, axis=0, out=out[1:])
    return out


def estimate(value: float, resampled: Floats, level: float = 0.95) -> Cell:
    """Return a figure with the percentile interval of its resamples ``(b,)``; NaN among them are left out."""
    known = resampled[~np.isnan(resampled)]
    if np.isnan(value) or not len(known):
        return {"value": None, "low": None, "high": None}
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    found = Interval(low=float(low), high=float(high), level=level)
    return {"value": value, "low": found.low, "high": found.high}


def separations(
    candidates: Mapping[str, Floats],
    labels: Labels,
    patients: Sequence[str],
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Cell]:
    """Return the AUROC of several scores of the same items, each with its percentile interval."""
    rankings = {name: Ranking(scores, labels) for name, scores in candidates.items()}
    found: dict[str, list[Floats]] = {name: [] for name in candidates}
    if rankings:
        for weights in Resamples(labels, patients, resamples, seed):
            for name, ranking in rankings.items():
                found[name].append(ranking.areas(weights)["auroc"])
    return {
        name: estimate(auroc(scores, labels), np.concatenate(found[name]), level) for name, scores in candidates.items()
    }


def _counted(called: Mask, labels: Labels) -> Floats:
    counts = binary_stat_scores(torch.from_numpy(called.astype(np.int64)), torch.from_numpy(labels))
    return counts.numpy().astype(np.float64)[:4]


def decisions(data: HeldOut, cutoff: float) -> Floats:
    """Return true and false positives, true and false negatives at a cutoff, ``(4,)``."""
    return _counted(data.scores >= cutoff, data.labels)


def _points(data: HeldOut, called: Mask | None) -> dict[str, float]:
    points = {"auroc": auroc(data.scores, data.labels), "auprc": auprc(data.scores, data.labels)}
    if called is not None:
        counts = _counted(called, data.labels)
        points |= {name: float(value) for name, value in decision_figures(*counts).items()}
    return points


def _figures(data: HeldOut, cutoff: float | None, level: float, resamples: int, seed: int) -> dict[str, object]:
    called = None if cutoff is None else data.scores >= cutoff
    points = _points(data, called)
    ranking = Ranking(data.scores, data.labels)
    sick = data.labels == 1
    cells = None if called is None else np.stack([called & sick, called & ~sick, ~called & ~sick, ~called & sick])
    found: dict[str, list[Floats]] = {name: [] for name in points}
    for weights in Resamples(data.labels, data.patients, resamples, seed):
        values = ranking.areas(weights)
        if cells is not None:
            values |= decision_figures(*(cells.astype(np.float64) @ weights))
        for name, value in values.items():
            found[name].append(value)
    counts = {"normal": int((~sick).sum()), "abnormal": int(sick.sum()), "patients": len(set(data.patients))}
    return {**counts, **{name: estimate(point, np.concatenate(found[name]), level) for name, point in points.items()}}


def summarise(
    data: HeldOut,
    cutoff: float | None,
    classes: Mapping[str, Mask] | None = None,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, object]:
    """Return AUROC and AUPRC, and at a cutoff the decision figures, each a :data:`Cell` with its interval.

    ``classes`` marks the abnormal items of each class: under ``classes`` come the same figures of those items
    against all normals. One-class data leave None what needs both.
    """
    out = _figures(data, cutoff, level, resamples, seed)
    if classes is not None:
        parts = {name: only(data, mask | (data.labels == 0)) for name, mask in classes.items()}
        out["classes"] = {name: _figures(part, cutoff, level, resamples, seed) for name, part in parts.items()}
    return out


def only(data: HeldOut, keep: Mask) -> HeldOut:
    """Return the items that a mask ``(N,)`` keeps."""
    patients = tuple(p for p, kept in zip(data.patients, keep, strict=True) if kept)
    return HeldOut(data.scores[keep], data.labels[keep], patients)


def classes_of(labels: Labels, kinds: Sequence[str]) -> dict[str, Mask]:
    """Return which items are of each abnormal class, ``(N,)`` each, classes in alphabetical order."""
    names = np.array(kinds)
    sick = labels == 1
    return {str(name): sick & (names == name) for name in np.unique(names[sick]) if name}


def classes_by_patient(classes: Mapping[str, Mask], owners: Sequence[str], patients: Sequence[str]) -> dict[str, Mask]:
    """Return which of ``patients`` have an item of each class; one with items of two classes counts in both.

    ``owners`` names the patient of each item.
    """
    having = {name: {p for p, kept in zip(owners, mask, strict=True) if kept} for name, mask in classes.items()}
    return {name: np.array([p in some for p in patients], bool) for name, some in having.items()}
