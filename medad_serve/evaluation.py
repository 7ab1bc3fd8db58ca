"""What stands between a run and a server: export it, and measure it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medad_serve.artifact import MANIFEST, load_manifest
from medad_serve.calibration import Decider, HeldOut
from medad_serve.data import Prepared, Split, load_prepared, read_table
from medad_serve.data.cache import Progress
from medad_serve.errors import MedadError
from medad_serve.export.bundle import PRECISION, Bundle, Part, Say, export, score_parts
from medad_serve.export.graph import EagerRuntime
from medad_serve.files import write_whole
from medad_serve.metrics import auroc, summarise, with_interval
from medad_serve.models import AnomalyModel
from medad_serve.report import plot_scores
from medad_serve.runtime import Runtime, open_runtime, run_batched
from medad_serve.spec import Calibration
from medad_serve.training.run import Run, is_run, open_run

PARITY_INPUTS = 64


def _part(model: AnomalyModel, data: Prepared, patients: set[str], label: int | None = None) -> Part:
    rows = data.rows(patients, label)
    return Part(model, data.tensor[rows], data.labels[rows], tuple(data.patients[r] for r in rows))


def _parts(run: Run, model: AnomalyModel, data: Prepared) -> tuple[Part, ...]:
    """Healthy patients that a part's model never saw, and the diseased of validation for the other policies."""
    split = run.split
    if split.method == "held_out":
        healthy = [_part(model, data, split.patients("calibration"), label=0)]
    else:
        healthy = [
            _part(run.trained(folder), data, {p for p, k in split.folds.items() if k == number}, label=0)
            for number, folder in enumerate(run.folds())
        ]
    parts = [*healthy, _part(model, data, split.patients("validation"), label=1)]
    return tuple(p for p in parts if len(p.labels))


def make_bundle(run: Run, data: Prepared, *, name: str | None = None, version: str = "1.0") -> Bundle:
    """Gather what an export of ``run`` needs."""
    model = run.trained()
    held_out = data.rows(run.split.patients("validation", "calibration", "test"))
    # Evenly over the rows, so that healthy and diseased both take part.
    picked = held_out[np.linspace(0, len(held_out) - 1, min(PARITY_INPUTS, len(held_out))).astype(int)]
    config = run.config
    return Bundle(
        name=name or config.experiment,
        version=version,
        family=config.model,
        settings=config.settings,
        model=model,
        shape=run.family.shape(config.prep),
        input=config.input,
        prep=config.prep,
        parts=_parts(run, model, data),
        method=run.split.method,
        folds=len(run.folds()),
        aggregation=config.calibration.aggregation,
        policy=config.calibration.policy,
        fingerprint=data.fingerprint,
        parity_inputs=data.tensor[picked],
    )


def export_run(
    run: Run,
    formats: Sequence[str],
    *,
    name: str | None = None,
    version: str = "1.0",
    say: Say = lambda _: None,
    progress: Progress | None = None,
) -> Path:
    """Export, calibrate and check a finished run into ``RUN/artifact``; returns that folder."""
    bundle = make_bundle(run, run.prepared(progress), name=name, version=version)
    export(bundle, formats, run.artifact, say)
    return run.artifact


@dataclass(frozen=True)
class Subject:
    """What is evaluated: a runtime with its calibration, and the split of its run where that is known."""

    runtime: Runtime
    runtime_name: str
    calibration: Calibration
    policy: str
    data: Prepared
    split: Split | None


def _run_subject(run: Run, source: str | None, progress: Progress | None) -> Subject:
    data = run.prepared(progress)
    bundle = make_bundle(run, data)
    calibration = score_parts(bundle, EagerRuntime)
    split: Split | None = run.split
    if source and source != run.config.data:
        data = load_prepared(read_table(source), run.config.prep, run.config.input, progress=progress)
        split = None
    return Subject(EagerRuntime(bundle.model), "eager", calibration, bundle.policy, data, split)


def _artifact_subject(artifact: Path, runtime: str, source: str | None, progress: Progress | None) -> Subject:
    manifest = load_manifest(artifact)
    key = f"{runtime}/{PRECISION}"
    if key not in manifest.calibrations:
        raise MedadError(f"{artifact} was not exported for {key}", f"It has: {', '.join(manifest.calibrations)}")
    calibration = manifest.calibrations[key]
    run = open_run(artifact.parent) if is_run(artifact.parent) else None
    if source is None and run is None:
        raise MedadError(f"{artifact} lies in no run", "Give --data LAYOUT:DIR")
    options = run.config.data_options if run and source in (None, run.config.data) else {}
    table = read_table(source or (run.config.data if run else ""), options)
    data = load_prepared(table, manifest.prep, manifest.input, progress=progress)
    # The roles hold only for the very data that the run was made from, wherever it lies now.
    split = run.split if run and data.fingerprint == calibration.data_fingerprint else None
    opened = open_runtime(artifact, runtime, [o.name for o in manifest.outputs])
    return Subject(opened, runtime, calibration, manifest.default_policy, data, split)


def evaluate(
    path: Path,
    *,
    data: str | None = None,
    runtime: str | None = None,
    policy: str | None = None,
    out: Path | None = None,
    progress: Progress | None = None,
) -> tuple[dict[str, Any], Path]:
    """Measure a run (its trained model; its artifact where ``runtime`` names one) or an artifact.

    Returns the metrics and the file that holds them.

    Data that the model was made from counts by its test patients alone; other data counts whole.
    """
    if runtime and not (path / MANIFEST).is_file():
        path = open_run(path).artifact
    if runtime or (path / MANIFEST).is_file():
        subject = _artifact_subject(path, runtime or "onnx", data, progress)
        default = path.parent / "metrics.json" if is_run(path.parent) else path.with_name(f"{path.name}.metrics.json")
    else:
        run = open_run(path)
        subject = _run_subject(run, data, progress)
        default = run.path / "metrics.json"
    metrics, held_out = measure(subject, policy)
    target = out or default
    write_whole(target, json.dumps(metrics, indent=1) + "\n")
    plot_scores(held_out, metrics["slice"]["cutoff"], target.with_suffix(".png"))
    return metrics, target


def measure(subject: Subject, policy: str | None) -> tuple[dict[str, Any], HeldOut]:
    """Return AUROC, AUPRC, sensitivity and specificity at both levels beside the trivial baselines."""
    data = subject.data
    chosen = subject.split.patients("test") if subject.split else set(data.patients)
    rows = data.rows(chosen)
    if not len(rows):
        raise MedadError("no image is left to evaluate", "Check the faults of the data")
    tensor = data.tensor[rows]
    labels, patients = data.labels[rows], tuple(data.patients[r] for r in rows)

    def held_out(values: np.ndarray[Any, Any]) -> HeldOut:
        return HeldOut(np.asarray(values, np.float64), labels, patients)

    slices = held_out(run_batched(subject.runtime, tensor, ["score"])["score"])
    aggregation, policy = subject.calibration.aggregation, policy or subject.policy
    levels = {
        "slice": (slices, Decider(subject.calibration.slice).cutoff(policy)),
        "patient": (slices.by_patient(aggregation), Decider(subject.calibration.patient).cutoff(policy)),
    }
    flat = tensor.reshape(len(tensor), -1)
    trivial = {"mean": flat.mean(axis=1), "p99": np.percentile(flat, 99, axis=1)}
    metrics: dict[str, Any] = {
        "runtime": subject.runtime_name,
        "split": "test" if subject.split else "all",
        "policy": policy,
        "calibration": {"method": subject.calibration.method, "n": subject.calibration.slice.n},
        "aggregation": aggregation,
        "data_fingerprint": data.fingerprint,
        "faults": len(data.faults),
        **{name: {"cutoff": cutoff, **summarise(found, cutoff)} for name, (found, cutoff) in levels.items()},
        "baselines": {name: {"auroc": with_interval(auroc, held_out(values))} for name, values in trivial.items()},
    }
    return metrics, slices
