"""The same experiment on every fold: each test patient scored by a model that never saw them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medad_serve.calibration import HeldOut
from medad_serve.data import Prepared
from medad_serve.evaluation import score_rows
from medad_serve.export.graph import EagerRuntime
from medad_serve.files import write_whole
from medad_serve.metrics import auroc, summarise
from medad_serve.training.run import Run

FOLDS = "folds.json"


def _figures(folds: Sequence[HeldOut]) -> dict[str, Any]:
    """AUROC of each fold with mean and standard deviation, and over all folds as one, with intervals by patient.

    Scores of different folds come from different models: pooled as they are, so that the pooled figure also pays
    for models that disagree on the scale.
    """
    pooled = HeldOut(
        np.concatenate([f.scores for f in folds]),
        np.concatenate([f.labels for f in folds]),
        tuple(patient for f in folds for patient in f.patients),
    )
    each = [auroc(f.scores, f.labels) for f in folds]
    return {
        "auroc": {"folds": each, "mean": float(np.mean(each)), "sd": float(np.std(each, ddof=1))},
        "pooled": summarise(pooled, None),
    }


def cross_validate(runs: Sequence[Run], data: Prepared) -> dict[str, Any]:
    """Measure the finished runs of all folds on their test patients, beside trivial baselines."""
    by_name: dict[str, list[HeldOut]] = {}
    for run in runs:
        rows = data.rows(run.split.patients("test"))
        scores, baselines = score_rows(EagerRuntime(run.trained()), data, rows, ["score"])
        patients = tuple(data.patients[r] for r in rows)
        for name, values in (scores | baselines).items():
            by_name.setdefault(name, []).append(HeldOut(values, data.labels[rows], patients))
    figures = {name: _figures(folds) for name, folds in by_name.items()}
    return {
        "runs": [str(run.path) for run in runs],
        "test_patients": len({p for fold in by_name["score"] for p in fold.patients}),
        "data_fingerprint": data.fingerprint,
        **figures.pop("score"),
        "baselines": figures,
    }


def write_folds(runs: Sequence[Run], data: Prepared) -> tuple[dict[str, Any], Path]:
    """Write what :func:`cross_validate` measures beside the folders of the folds; return it and the file."""
    figures = cross_validate(runs, data)
    target = runs[0].path.parent.parent / FOLDS
    write_whole(target, json.dumps(figures, indent=1) + "\n")
    return figures, target
