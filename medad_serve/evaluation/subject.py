"""What is evaluated: a model behind its runtime, with its calibration and the data that it is held against."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from medad_serve.artifact import MANIFEST, load_manifest
from medad_serve.calibration import Decider
from medad_serve.data import Prepared, load_prepared, read_table
from medad_serve.data.cache import Progress
from medad_serve.errors import MedadError
from medad_serve.evaluation.exporting import make_bundle
from medad_serve.export.bundle import score_parts
from medad_serve.export.graph import EagerRuntime
from medad_serve.models import AnomalyModel, families
from medad_serve.runtime import Runtime, open_runtime
from medad_serve.spec import Calibration, InputSpec, PrepSpec
from medad_serve.training.run import Run, is_run, open_run


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
    input: InputSpec = field(default_factory=InputSpec)
    settings: dict[str, Any] = field(default_factory=dict)
    """Of the model."""

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

    def untrained(self) -> AnomalyModel | None:
        """Build the model without its weights; None of a model that is not registered here."""
        chosen = families().get(self.family)
        return chosen.build(self.prep, self.settings) if chosen else None

    def policies(self) -> dict[str, tuple[float, float]]:
        """Return the cutoffs of one item and of one patient of every policy that both levels have."""
        patient = Decider(self.calibration.patient).cutoffs
        return {c.policy: (c.value, patient[c.policy]) for c in self.calibration.item.cutoffs if c.policy in patient}


def run_around(opened: Path) -> Run | None:
    """Return the run that a folder is, or that an artifact lies in."""
    return next((open_run(home) for home in (opened, opened.parent) if is_run(home)), None)


def _read_data(
    run: Run | None, source: str | None, prep: PrepSpec, spec: InputSpec, progress: Progress | None
) -> Prepared:
    """Prepare the data that is named, else the run's; the run's options hold for its own layout."""
    if run is None and source is None:
        raise MedadError("the artifact lies in no run", "Give --data LAYOUT:DIR")
    named = source or (run.config.data if run else "")
    options = run.config.options_of(named) if run else {}
    return load_prepared(read_table(named, options), prep, spec, progress=progress)


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
        data=_read_data(run, source, bundle.prep, bundle.input, progress) if source else own,
        seen=frozenset(bundle.seen),
        prep=bundle.prep,
        input=bundle.input,
        settings=bundle.settings,
    )


def _artifact_subject(artifact: Path, runtime: str, source: str | None, progress: Progress | None) -> Subject:
    manifest = load_manifest(artifact)
    calibration = manifest.calibration_of(runtime, artifact)
    outputs = tuple(o.name for o in manifest.outputs)
    return Subject(
        name=manifest.name,
        family=manifest.model,
        outputs=outputs,
        runtime=open_runtime(artifact, runtime, outputs),
        runtime_name=runtime,
        calibration=calibration,
        policy=manifest.default_policy,
        data=_read_data(run_around(artifact), source, manifest.prep, manifest.input, progress),
        seen=frozenset(manifest.seen),
        prep=manifest.prep,
        input=manifest.input,
        settings=manifest.model_settings,
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


def on_other_data(subject: Subject, opened: Path, source: str, progress: Progress | None = None) -> Subject:
    """Return the same model held against other data, ``layout:directory``; ``opened`` is the folder it came from."""
    return replace(subject, data=_read_data(run_around(opened), source, subject.prep, subject.input, progress))


def beside(path: Path, name: str, subject: Subject) -> Path:
    """Return where ``name`` of a run or artifact goes: figures of other data do not replace the run's own."""
    home, before = (path, "") if is_run(path) else (path.parent, "" if is_run(path.parent) else f"{path.name}.")
    return home / f"{before}{name}{'' if subject.split == 'test' else f'-{subject.data.fingerprint[:8]}'}"
