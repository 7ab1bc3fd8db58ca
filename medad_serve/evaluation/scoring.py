"""Every item that the model never saw, scored once."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medad_serve.calibration import HeldOut
from medad_serve.data import Prepared
from medad_serve.errors import MedadError
from medad_serve.evaluation.exporting import short
from medad_serve.evaluation.subject import Subject
from medad_serve.metrics import Floats, Mask, classes_by_patient, classes_of
from medad_serve.runtime import Runtime, Selection, batches

BASELINES: dict[str, Callable[[NDArray[np.float32]], NDArray[Any]]] = {
    "mean": lambda flat: flat.mean(axis=1),
    "p99": lambda flat: np.percentile(flat, 99, axis=1),
    "std": lambda flat: flat.std(axis=1),
}
"""What the prepared pixels ``(N, values)`` of an item say of it without any model."""
HEATMAP = "heatmap"


@dataclass(frozen=True)
class Scored:
    """The scores of every item that the model never saw."""

    rows: NDArray[np.int64]
    """Where each item stands in the prepared data."""
    items: HeldOut
    classes: dict[str, Mask]
    """Which items are of each abnormal class."""
    components: dict[str, Floats]
    """Other scores ``(N,)`` that the model returns."""
    baselines: dict[str, Floats]
    heatmaps: NDArray[np.float32] | None = None
    """``(N, *S)``, of data with masks."""

    def by_patient(self, aggregation: str) -> tuple[HeldOut, dict[str, Mask]]:
        """Return one score a patient, and which patients have an item of each class."""
        patients = self.items.by_patient(aggregation)
        return patients, classes_by_patient(self.classes, self.items.patients, patients.patients)


def unseen(subject: Subject) -> NDArray[np.int64]:
    """Return the rows of files that the model never saw; where the data set names those of its test, these.

    Raises MedadError where there is none.
    """
    data = subject.data
    rows = [r for r, digest in enumerate(data.digests) if short(digest) not in subject.seen]
    if not rows:
        raise MedadError("every file of the data went into making the model", "Evaluate on files that it never saw")
    tests = [r for r in rows if data.samples[r].role == "test"]
    return np.array(tests or rows, np.int64)


def score(subject: Subject) -> Scored:
    """Score every item that the model never saw; raises MedadError where there is none."""
    data, rows = subject.data, unseen(subject)
    masked = HEATMAP in subject.outputs and any(data.samples[r].mask is not None for r in rows)
    heatmaps = _on_disk((len(rows), *data.tensor.shape[2:])) if masked else None
    names = ["score", *_components(subject, rows)]
    scores, baselines = score_rows(subject.runtime, data, rows, names, heatmaps)
    if not all(np.isfinite(values).all() for values in scores.values()):
        raise MedadError("the model gives scores that are not finite", "Train again with a lower learning rate")
    labels, patients = data.labels[rows], tuple(data.patients[r] for r in rows)
    return Scored(
        rows=rows,
        items=HeldOut(scores.pop("score"), labels, patients),
        classes=classes_of(labels, [data.kinds[r] for r in rows]),
        components=scores,
        baselines=baselines,
        heatmaps=heatmaps,
    )


def _on_disk(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return an array in a file that vanishes with it: the heatmaps of a data set may not fit into memory."""
    with tempfile.TemporaryFile() as file:  # the mapping holds it open
        return np.memmap(file, np.float32, "w+", shape=shape)


def score_rows(
    runtime: Runtime,
    data: Prepared,
    rows: NDArray[np.int64],
    names: Sequence[str],
    heatmaps: NDArray[np.float32] | None = None,
) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """Return the outputs of rows that are one number an item, and what their pixels alone say, ``(N,)`` each.

    Fills ``heatmaps (N, *S)`` where it is given.
    """
    chosen = Selection(data.tensor, rows)
    outputs: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
    trivial: dict[str, list[NDArray[Any]]] = {name: [] for name in BASELINES}
    for part, found in batches(runtime, chosen, [*names, *[HEATMAP] * (heatmaps is not None)]):
        if heatmaps is not None:
            heatmaps[part] = found[HEATMAP][:, 0]
        for name in names:
            outputs[name].append(found[name])
        values = chosen[part]
        for name, baseline in BASELINES.items():
            trivial[name].append(baseline(values.reshape(len(values), -1)))
    return _joined(outputs), _joined(trivial)


def _joined(parts: dict[str, list[NDArray[Any]]]) -> dict[str, Floats]:
    return {name: np.concatenate(values).astype(np.float64) for name, values in parts.items()}


def _components(subject: Subject, rows: NDArray[np.int64]) -> list[str]:
    """Name the outputs beside ``score`` that are one number an item."""
    found = subject.runtime.run(Selection(subject.data.tensor, rows)[:1], subject.outputs)
    return [n for n in subject.outputs if n != "score" and found[n].ndim == 1 and found[n].dtype.kind == "f"]
