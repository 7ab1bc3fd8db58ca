"""Image and patient level metrics with intervals bootstrapped by patient."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torchmetrics.functional.classification import binary_auroc, binary_average_precision

from medad_serve.calibration import HeldOut
from medad_serve.spec import Interval

Metric = Callable[[NDArray[np.float64], NDArray[np.int64]], float]


def _ranks(scores: NDArray[np.float64]) -> torch.Tensor:
    # torchmetrics squashes scores outside [0, 1] through a sigmoid in float32, which can tie distinct ones;
    # ranks keep the order exactly and both metrics depend on the order alone.
    unique, inverse = np.unique(scores, return_inverse=True)
    return torch.from_numpy(inverse / max(1, len(unique) - 1))


def auroc(scores: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Area under the ROC curve; NaN where only one class is there."""
    if len(np.unique(labels)) < 2:
        return float("nan")
    return float(binary_auroc(_ranks(scores), torch.from_numpy(labels)))


def auprc(scores: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Area under the precision-recall curve as average precision; NaN without a positive."""
    if len(np.unique(labels)) < 2:
        return float("nan")
    return float(binary_average_precision(_ranks(scores), torch.from_numpy(labels)))


def sensitivity_at(cutoff: float) -> Metric:
    """Return the metric: share of abnormal scores at or above ``cutoff``."""
    return lambda scores, labels: float(np.mean(scores[labels == 1] >= cutoff)) if (labels == 1).any() else np.nan


def specificity_at(cutoff: float) -> Metric:
    """Return the metric: share of normal scores below ``cutoff``."""
    return lambda scores, labels: float(np.mean(scores[labels == 0] < cutoff)) if (labels == 0).any() else np.nan


def with_interval(
    metric: Metric, data: HeldOut, *, level: float = 0.95, resamples: int = 1000, seed: int = 0
) -> dict[str, float | None]:
    """Return ``{value, low, high}``: percentile bootstrap over patients, healthy and diseased apart.

    Resampling within each class keeps both present, as with scikit-learn's stratified resample.
    """
    rng = np.random.default_rng(seed)
    patients = np.unique(np.array(data.patients), return_inverse=True)[1]
    rows = [np.flatnonzero(patients == i) for i in range(int(patients.max()) + 1)]
    by_class = [[r for r in rows if data.labels[r].max() == label] for label in (0, 1)]
    values = []
    for _ in range(resamples):
        parts = [group[i] for group in by_class if group for i in rng.integers(0, len(group), len(group))]
        picked = np.concatenate(parts)
        values.append(metric(data.scores[picked], data.labels[picked]))
    point = metric(data.scores, data.labels)
    if np.isnan(point):
        return {"value": None, "low": None, "high": None}
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return {
        "value": point,
        **Interval(low=float(low), high=float(high), level=level).model_dump(exclude={"level"}),
    }


def summarise(data: HeldOut, cutoff: float | None, *, seed: int = 0) -> dict[str, object]:
    """Return AUROC and AUPRC, and at a cutoff sensitivity and specificity, each with its interval."""
    chosen: dict[str, Metric] = {"auroc": auroc, "auprc": auprc}
    if cutoff is not None:
        chosen |= {"sensitivity": sensitivity_at(cutoff), "specificity": specificity_at(cutoff)}
    counts = {"normal": int((data.labels == 0).sum()), "abnormal": int((data.labels == 1).sum())}
    counts["patients"] = len(set(data.patients))
    return {**counts, **{name: with_interval(m, data, seed=seed) for name, m in chosen.items()}}
