"""What stands between a run and a server: its export, calibrated and proven."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medad_serve.data import Prepared
from medad_serve.data.cache import Progress
from medad_serve.export.artifact import Say, export
from medad_serve.export.bundle import Bundle, Part
from medad_serve.models import AnomalyModel
from medad_serve.runtime import FloatArray, Selection
from medad_serve.training.run import Run

VALIDATION_POLICY = "youden"
"""Decides where a run of cross-validation is reported: few healthy patients make no rare false alarm measurable."""
MOST_INPUTS = 64
MOST_VALUES = 2**23
"""Most items, and input values, that parity is proven on and int8 takes its ranges from: four volumes of 128^3."""


def _part(model: AnomalyModel, data: Prepared, patients: set[str], label: int | None = None) -> Part:
    rows = data.rows(patients, label)
    return Part(model, Selection(data.tensor, rows), data.labels[rows], tuple(data.patients[r] for r in rows))


def short(digest: str) -> str:
    """Return the part of a digest that the manifest keeps: 64 bits tell a million files apart."""
    return digest[:16]


def _made_of(run: Run) -> set[str]:
    """Return the patients that a model was trained, chosen or calibrated with."""
    return run.split.patients("train", "validation", "calibration")


def _parts(run: Run, model: AnomalyModel, data: Prepared) -> tuple[Part, ...]:
    """Healthy patients that a part's model never saw, and the diseased of validation for the other policies."""
    split = run.split
    if split.method == "validation":
        healthy = [_part(model, data, split.patients("validation"), label=0)]
    elif split.method == "held_out":
        healthy = [_part(model, data, split.patients("calibration"), label=0)]
    else:
        healthy = [
            _part(run.trained(run.fold(k)), data, {p for p, fold in split.folds.items() if fold == k}, label=0)
            for k in run.fold_numbers()
        ]
    parts = [*healthy, _part(model, data, split.patients("validation"), label=1)]
    return tuple(p for p in parts if len(p.labels))


def _some(data: Prepared, patients: set[str]) -> FloatArray:
    """Return a bounded number of items of patients, evenly over the rows: healthy and diseased both take part."""
    rows = data.rows(patients)
    most = max(2, MOST_VALUES // math.prod(data.tensor.shape[1:]))
    count = min(MOST_INPUTS, most, len(rows))
    return np.asarray(data.tensor[rows[np.linspace(0, len(rows) - 1, count).astype(int)]], np.float32)


def make_bundle(run: Run, data: Prepared, *, name: str | None = None, version: str = "1.0") -> Bundle:
    """Gather what an export of ``run`` needs."""
    model = run.trained()
    shape = run.family.shape(run.config.prep)
    config = run.config
    return Bundle(
        name=name or config.experiment,
        version=version,
        family=config.model,
        settings=config.settings,
        model=model,
        shape=shape,
        input=config.input,
        prep=config.prep,
        parts=_parts(run, model, data),
        method=run.split.method,
        folds=len(run.folds()),
        aggregation=config.calibration.aggregation,
        policy=VALIDATION_POLICY if run.split.method == "validation" else config.calibration.policy,
        fingerprint=data.fingerprint,
        parity_inputs=_some(data, run.split.patients("validation", "calibration", "test")),
        samples=_some(data, run.split.patients("validation")),
        seen=tuple(sorted({short(data.digests[r]) for r in data.rows(_made_of(run))})),
    )


def export_run(
    run: Run,
    formats: Sequence[str],
    *,
    name: str | None = None,
    version: str = "1.0",
    device: str = "cpu",
    say: Say = lambda _: None,
    progress: Progress | None = None,
    gated: bool = True,
) -> Path:
    """Export, calibrate and check a finished run into ``RUN/artifact``; returns that folder."""
    bundle = make_bundle(run, run.prepared(progress), name=name, version=version)
    export(bundle, formats, run.artifact, say, device=device, gated=gated)
    return run.artifact
