"""What stands between a run and a server: export it, and measure it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medad_serve.artifact import MANIFEST, load_manifest
from medad_serve.calibration import Decider, HeldOut
from medad_serve.data import Prepared, load_prepared, read_table
from medad_serve.data.cache import Progress
from medad_serve.errors import MedadError
from medad_serve.export.bundle import Bundle, Part, Say, export, score_parts
from medad_serve.export.graph import EagerRuntime
from medad_serve.files import write_whole
from medad_serve.metrics import auroc, summarise, with_interval
from medad_serve.models import AnomalyModel
from medad_serve.report import plot_scores
from medad_serve.runtime import Runtime, Selection, batches, open_runtime
from medad_serve.spec import Calibration, Manifest
from medad_serve.training.config import RunConfig
from medad_serve.training.run import Run, is_run, open_run

VALIDATION_POLICY = "youden"
"""Decides where a run of cross-validation is reported: few healthy patients make no rare false alarm measurable."""
PARITY_INPUTS = 64
PARITY_VALUES = 2**23
"""Most input values that parity is proven on: four volumes of 128^3."""


def _part(model: AnomalyModel, data: Prepared, patients: set[str], label: int | None = None) -> Part:
    rows = data.rows(patients, label)
    return Part(model, Selection(data.tensor, rows), data.labels[rows], tuple(data.patients[r] for r in rows))


def _short(digest: str) -> str:
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


def make_bundle(run: Run, data: Prepared, *, name: str | None = None, version: str = "1.0") -> Bundle:
    """Gather what an export of ``run`` needs."""
    model = run.trained()
    held_out = data.rows(run.split.patients("validation", "calibration", "test"))
    # Evenly over the rows, so that healthy and diseased both take part.
    shape = run.family.shape(run.config.prep)
    count = min(PARITY_INPUTS, max(2, PARITY_VALUES // math.prod(shape)), len(held_out))
    picked = held_out[np.linspace(0, len(held_out) - 1, count).astype(int)]
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
        parity_inputs=data.tensor[picked],
        seen=tuple(sorted({_short(data.digests[r]) for r in data.rows(_made_of(run))})),
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
    """What is evaluated: a runtime with its calibration, the data, and the files that made the model."""

    runtime: Runtime
    runtime_name: str
    calibration: Calibration
    policy: str
    data: Prepared
    seen: frozenset[str]
    unit: Literal["slice", "volume"]


def _read_data(
    run: Run | None, source: str | None, made_with: Manifest | RunConfig, progress: Progress | None
) -> Prepared:
    """Prepare the data that is named, else the run's; the run's options hold for its own layout."""
    if run is None and source is None:
        raise MedadError("the artifact lies in no run", "Give --data LAYOUT:DIR")
    named = source or (run.config.data if run else "")
    same_layout = run is not None and named.partition(":")[0] == run.config.data.partition(":")[0]
    options = run.config.data_options if run and same_layout else {}
    return load_prepared(read_table(named, options), made_with.prep, made_with.input, progress=progress)


def _run_subject(run: Run, source: str | None, progress: Progress | None) -> Subject:
    own = run.prepared(progress)
    bundle = make_bundle(run, own)
    data = _read_data(run, source, run.config, progress) if source else own
    runtime, calibration = EagerRuntime(bundle.model), score_parts(bundle, EagerRuntime)
    return Subject(runtime, "eager", calibration, bundle.policy, data, frozenset(bundle.seen), bundle.prep.unit)


def _artifact_subject(artifact: Path, runtime: str, source: str | None, progress: Progress | None) -> Subject:
    manifest = load_manifest(artifact)
    calibration = manifest.calibration_of(runtime, artifact)
    run = open_run(artifact.parent) if is_run(artifact.parent) else None
    data = _read_data(run, source, manifest, progress)
    opened = open_runtime(artifact, runtime, [o.name for o in manifest.outputs])
    return Subject(
        opened, runtime, calibration, manifest.default_policy, data, frozenset(manifest.seen), manifest.prep.unit
    )


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

    Files that the model was trained, chosen or calibrated with are left out, wherever they lie now: of its own
    data the test patients count, of other data every file that it never saw.
    """
    if runtime and not (path / MANIFEST).is_file():
        path = open_run(path).artifact
    if runtime or (path / MANIFEST).is_file():
        subject = _artifact_subject(path, runtime or "onnx", data, progress)
        home, stem = (path.parent, "metrics") if is_run(path.parent) else (path.parent, f"{path.name}.metrics")
    else:
        run = open_run(path)
        subject = _run_subject(run, data, progress)
        home, stem = run.path, "metrics"
    metrics, held_out = measure(subject, policy)
    if metrics["split"] != "test":
        stem += f"-{subject.data.fingerprint[:8]}"  # the run's own figures stay
    target = out or home / f"{stem}.json"
    write_whole(target, json.dumps(metrics, indent=1) + "\n")
    plot_scores(held_out, metrics[metrics["unit"]]["cutoff"], target.with_suffix(".png"))
    return metrics, target


def measure(subject: Subject, policy: str | None) -> tuple[dict[str, Any], HeldOut]:
    """Return AUROC, AUPRC, sensitivity and specificity at both levels beside the trivial baselines."""
    data = subject.data
    rows = np.array([r for r, digest in enumerate(data.digests) if _short(digest) not in subject.seen], np.int64)
    if not len(rows):
        raise MedadError("every file of the data went into making the model", "Evaluate on files that it never saw")
    labels, patients = data.labels[rows], tuple(data.patients[r] for r in rows)

    def held_out(values: Sequence[NDArray[Any]]) -> HeldOut:
        return HeldOut(np.concatenate(values).astype(np.float64), labels, patients)

    chosen = Selection(data.tensor, rows)
    scores: list[NDArray[Any]] = []
    trivial: dict[str, list[NDArray[Any]]] = {"mean": [], "p99": []}
    for part, outputs in batches(subject.runtime, chosen, ["score"]):
        scores.append(outputs["score"])
        flat = chosen[part].reshape(len(outputs["score"]), -1)
        trivial["mean"].append(flat.mean(axis=1))
        trivial["p99"].append(np.percentile(flat, 99, axis=1))
    items = held_out(scores)
    aggregation, policy = subject.calibration.aggregation, policy or subject.policy
    levels = {
        subject.unit: (items, Decider(subject.calibration.item).cutoff(policy)),
        "patient": (items.by_patient(aggregation), Decider(subject.calibration.patient).cutoff(policy)),
    }
    metrics: dict[str, Any] = {
        "runtime": subject.runtime_name,
        "split": "test" if data.fingerprint == subject.calibration.data_fingerprint else "unseen",
        "excluded_seen": len(data.digests) - len(rows),
        "policy": policy,
        "unit": subject.unit,
        "calibration": {"method": subject.calibration.method, "n": subject.calibration.item.n},
        "aggregation": aggregation,
        "data_fingerprint": data.fingerprint,
        "faults": len(data.faults),
        **{name: {"cutoff": cutoff, **summarise(found, cutoff)} for name, (found, cutoff) in levels.items()},
        "baselines": {name: {"auroc": with_interval(auroc, held_out(values))} for name, values in trivial.items()},
    }
    return metrics, items
