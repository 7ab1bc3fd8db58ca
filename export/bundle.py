"""What an export is made of: the trained model, held-out items, and the calibration that follows from their scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medad_serve.calibration import HeldOut, calibrate
from medad_serve.errors import MedadError
from medad_serve.models import AnomalyModel
from medad_serve.models.base import Shape
from medad_serve.prep import Statistics, input_range, measure
from medad_serve.runtime import FloatArray, Runtime, Selection, batches
from medad_serve.spec import Calibration, InputSpec, PrepSpec

DARK = 0.2
"""Of what is typical of abnormal items: normals below it are dark."""
HEATMAP_QUANTILE = 0.999


@dataclass(frozen=True)
class Part:
    """Held-out inputs and the model that never saw them: the exported one, or that of an out-of-fold round."""

    model: AnomalyModel
    tensor: FloatArray | Selection
    labels: NDArray[np.int64]
    patients: tuple[str, ...]


@dataclass(frozen=True)
class Bundle:
    """Everything that an export needs."""

    name: str
    version: str
    family: str
    settings: dict[str, object]
    model: AnomalyModel
    shape: Shape
    input: InputSpec
    prep: PrepSpec
    parts: tuple[Part, ...]
    method: str
    folds: int
    aggregation: str
    policy: str
    fingerprint: str
    parity_inputs: FloatArray
    samples: FloatArray
    """Validation items, healthy and diseased: what an int8 graph takes its ranges from. None makes a cutoff."""
    seen: tuple[str, ...]


@dataclass(frozen=True)
class Scored:
    """What one runtime says of the held-out items."""

    held_out: HeldOut
    scales: dict[int, list[float]]
    """High values of the heatmaps, by label."""
    looks: tuple[Statistics, ...]


def score(bundle: Bundle, runtime_of: Callable[[AnomalyModel], Runtime]) -> Scored:
    """Score every part by its own model. Raises MedadError where the scores cannot decide anything."""
    scores: list[NDArray[np.float64]] = []
    scales: dict[int, list[float]] = {0: [], 1: []}
    looks: list[Statistics] = []
    for part in bundle.parts:
        found = []
        for rows, outputs in batches(runtime_of(part.model), part.tensor, ["score", "heatmap"]):
            found.append(outputs["score"].astype(np.float64))
            for label, heatmap in zip(part.labels[rows], outputs["heatmap"], strict=True):
                scales[int(label)].append(float(np.quantile(heatmap, HEATMAP_QUANTILE)))
            looks.append(measure(part.tensor[rows][part.labels[rows] == 0], bundle.prep))
        scores.append(np.concatenate(found))
    if not all(np.isfinite(s).all() for s in scores):
        raise MedadError("the model gives scores that are not finite", "Train again with a lower learning rate")
    held_out = HeldOut(
        np.concatenate(scores),
        np.concatenate([p.labels for p in bundle.parts]),
        tuple(name for p in bundle.parts for name in p.patients),
    )
    if np.ptp(held_out.scores) == 0:
        raise MedadError("the model gives every held-out item the same score", "Train it longer or otherwise")
    return Scored(held_out, scales, tuple(looks))


def calibration_from(bundle: Bundle, scored: Scored) -> Calibration:
    """Make the cutoffs that follow from the scores of a runtime."""
    return calibrate(
        scored.held_out,
        fingerprint=bundle.fingerprint,
        method=bundle.method,
        folds=bundle.folds,
        aggregation=bundle.aggregation,
        default_policy=bundle.policy,
        heatmap_scale=full_color(scored.scales[0], scored.scales[1]),
        inputs=input_range(scored.looks),
    )


def score_parts(bundle: Bundle, runtime_of: Callable[[AnomalyModel], Runtime]) -> Calibration:
    """Calibrate on the scores that each part's own model gives, through the runtime that will serve."""
    return calibration_from(bundle, score(bundle, runtime_of))


def full_color(normal: Sequence[float], abnormal: Sequence[float]) -> float:
    """Return the value of a heatmap that takes full colour, of high values of held-out items.

    It is typical of normals, but a classifier's map leaves these dark: then it is typical of abnormal items.
    """
    scale = float(np.median(normal))
    bright = float(np.median(abnormal)) if len(abnormal) else 0.0
    return bright if scale < DARK * bright else scale
