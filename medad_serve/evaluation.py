"""What stands between a run and a server: export it, and measure it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
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
from medad_serve.metrics import Mask, classes_by_patient, classes_of, separations, summarise
from medad_serve.models import AnomalyModel
from medad_serve.report import plot_scores
from medad_serve.runtime import Runtime, Selection, batches, open_runtime
from medad_serve.spec import Calibration, Manifest, PrepSpec
from medad_serve.training.config import RunConfig
from medad_serve.training.run import Run, is_run, open_run

VALIDATION_POLICY = "youden"
"""Decides where a run of cross-validation is reported: few healthy patients make no rare false alarm measurable."""
BASELINES: dict[str, Callable[[NDArray[np.float32]], NDArray[Any]]] = {
    "mean": lambda flat: flat.mean(axis=1),
    "p99": lambda flat: np.percentile(flat, 99, axis=1),
    "std": lambda flat: flat.std(axis=1),
}
"""What the prepared pixels ``(N, values)`` of an item say of it without any model."""
Values = NDArray[np.float64]
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

    name: str
    family: str
    outputs: tuple[str, ...]
    runtime: Runtime
    runtime_name: str
    calibration: Calibration
    policy: str
    data: Prepared
    seen: frozenset[str]
    prep: PrepSpec

    @property
    def unit(self) -> Literal["slice", "volume"]:
        """What one item is called."""
        return self.prep.unit

    @property
    def split(self) -> Literal["test", "unseen"]:
        """Whether the items are test patients of the model's own data, or of other data."""
        return "test" if self.data.fingerprint == self.calibration.data_fingerprint else "unseen"

    def cutoffs(self, policy: str) -> tuple[float, float]:
        """Return the cutoffs of one item and of one patient; raises MedadError where the policy has none."""
        return Decider(self.calibration.item).cutoff(policy), Decider(self.calibration.patient).cutoff(policy)


@dataclass(frozen=True)
class Scored:
    """The scores of every item that the model never saw."""

    rows: NDArray[np.int64]
    """Where each item stands in the prepared data."""
    items: HeldOut
    classes: dict[str, Mask]
    """Which items are of each abnormal class."""
    components: dict[str, NDArray[np.float64]]
    """Other scores ``(N,)`` that the model returns."""
    baselines: dict[str, NDArray[np.float64]]

    def by_patient(self, aggregation: str) -> tuple[HeldOut, dict[str, Mask]]:
        """Return one score a patient, and which patients have an item of each class."""
        patients = self.items.by_patient(aggregation)
        return patients, classes_by_patient(self.classes, self.items.patients, patients.patients)


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
    return Subject(
        name=bundle.name,
        family=bundle.family,
        outputs=bundle.model.outputs,
        runtime=EagerRuntime(bundle.model),
        runtime_name="eager",
        calibration=score_parts(bundle, EagerRuntime),
        policy=bundle.policy,
        data=_read_data(run, source, run.config, progress) if source else own,
        seen=frozenset(bundle.seen),
        prep=bundle.prep,
    )


def _artifact_subject(artifact: Path, runtime: str, source: str | None, progress: Progress | None) -> Subject:
    manifest = load_manifest(artifact)
    calibration = manifest.calibration_of(runtime, artifact)
    run = open_run(artifact.parent) if is_run(artifact.parent) else None
    data = _read_data(run, source, manifest, progress)
    outputs = tuple(o.name for o in manifest.outputs)
    return Subject(
        name=manifest.name,
        family=manifest.model,
        outputs=outputs,
        runtime=open_runtime(artifact, runtime, outputs),
        runtime_name=runtime,
        calibration=calibration,
        policy=manifest.default_policy,
        data=data,
        seen=frozenset(manifest.seen),
        prep=manifest.prep,
    )


def open_subject(
    path: Path, *, data: str | None = None, runtime: str | None = None, progress: Progress | None = None
) -> tuple[Subject, Path]:
    """Open a run (its trained model; its artifact where ``runtime`` names one) or an artifact.

    Returns it with the folder that was opened, that of the artifact where one was.
    """
    if runtime and not (path / MANIFEST).is_file():
        path = open_run(path).artifact
    if runtime or (path / MANIFEST).is_file():
        return _artifact_subject(path, runtime or "onnx", data, progress), path
    run = open_run(path)
    return _run_subject(run, data, progress), run.path


def beside(path: Path, name: str, subject: Subject) -> Path:
    """Return where ``name`` of a run or artifact goes: figures of other data do not replace the run's own."""
    home, before = (path, "") if is_run(path) else (path.parent, "" if is_run(path.parent) else f"{path.name}.")
    return home / f"{before}{name}{'' if subject.split == 'test' else f'-{subject.data.fingerprint[:8]}'}"


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
    subject, opened = open_subject(path, data=data, runtime=runtime, progress=progress)
    policy = policy or subject.policy
    subject.cutoffs(policy)  # refuse an unknown policy before scoring
    scored = score(subject)
    metrics = measure(subject, scored, policy)
    stem = beside(opened, "metrics", subject)
    target = out or stem.with_name(f"{stem.name}.json")
    write_whole(target, json.dumps(metrics, indent=1) + "\n")
    plot_scores(
        scored.items,
        metrics[subject.unit]["cutoff"],
        target.with_suffix(".png"),
        unit=subject.unit,
        classes=scored.classes,
    )
    return metrics, target


def score(subject: Subject) -> Scored:
    """Score every item that the model never saw; raises MedadError where there is none."""
    data = subject.data
    rows = np.array([r for r, digest in enumerate(data.digests) if _short(digest) not in subject.seen], np.int64)
    if not len(rows):
        raise MedadError("every file of the data went into making the model", "Evaluate on files that it never saw")
    scores, baselines = score_rows(subject.runtime, data, rows, ["score", *_components(subject, rows)])
    if not all(np.isfinite(values).all() for values in scores.values()):
        raise MedadError("the model gives scores that are not finite", "Train again with a lower learning rate")
    labels, patients = data.labels[rows], tuple(data.patients[r] for r in rows)
    return Scored(
        rows=rows,
        items=HeldOut(scores.pop("score"), labels, patients),
        classes=classes_of(labels, [data.kinds[r] for r in rows]),
        components=scores,
        baselines=baselines,
    )


def score_rows(
    runtime: Runtime, data: Prepared, rows: NDArray[np.int64], names: Sequence[str]
) -> tuple[dict[str, Values], dict[str, Values]]:
    """Return the outputs of rows that are one number an item, and what their pixels alone say, ``(N,)`` each."""
    chosen = Selection(data.tensor, rows)
    outputs: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
    trivial: dict[str, list[NDArray[Any]]] = {name: [] for name in BASELINES}
    for part, found in batches(runtime, chosen, names):
        for name in names:
            outputs[name].append(found[name])
        values = chosen[part]
        for name, baseline in BASELINES.items():
            trivial[name].append(baseline(values.reshape(len(values), -1)))
    return _joined(outputs), _joined(trivial)


def _joined(parts: dict[str, list[NDArray[Any]]]) -> dict[str, Values]:
    return {name: np.concatenate(values).astype(np.float64) for name, values in parts.items()}


def _components(subject: Subject, rows: NDArray[np.int64]) -> list[str]:
    """Name the outputs beside ``score`` that are one number an item."""
    found = subject.runtime.run(Selection(subject.data.tensor, rows)[:1], subject.outputs)
    return [n for n in subject.outputs if n != "score" and found[n].ndim == 1 and found[n].dtype.kind == "f"]


def measure(subject: Subject, scored: Scored, policy: str) -> dict[str, Any]:
    """Return every figure of ``metrics.json``: both levels, overall and per class, beside trivial baselines."""
    aggregation = subject.calibration.aggregation
    of_item, of_patient = subject.cutoffs(policy)
    items = scored.items
    patients, classes = scored.by_patient(aggregation)

    def alone(candidates: dict[str, NDArray[np.float64]]) -> dict[str, Any]:
        found = separations(candidates, items.labels, items.patients)
        return {name: {"auroc": figure} for name, figure in found.items()}

    return {
        "runtime": subject.runtime_name,
        "split": subject.split,
        "excluded_seen": len(subject.data.digests) - len(scored.rows),
        "policy": policy,
        "unit": subject.unit,
        "calibration": {"method": subject.calibration.method, "n": subject.calibration.item.n},
        "aggregation": aggregation,
        "data_fingerprint": subject.data.fingerprint,
        "faults": len(subject.data.faults),
        subject.unit: {"cutoff": of_item, **summarise(items, of_item, scored.classes)},
        "patient": {"cutoff": of_patient, **summarise(patients, of_patient, classes)},
        "scores": alone(scored.components),
        "baselines": alone(scored.baselines),
    }
