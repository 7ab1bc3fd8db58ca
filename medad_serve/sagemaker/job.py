"""The training of one SageMaker job: resumed where its checkpoints stand, left in the model's folder ready to serve."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from medad_serve.artifact import graph_of
from medad_serve.data import Prepared
from medad_serve.errors import MedadError
from medad_serve.evaluation import evaluate, export_run
from medad_serve.export.archive import archive
from medad_serve.export.store import check_name
from medad_serve.report import plot_history
from medad_serve.sagemaker.container import Container
from medad_serve.sagemaker.hosting import write_settings
from medad_serve.training.config import RunConfig, model_named, resolve
from medad_serve.training.fit import fit
from medad_serve.training.run import CONFIG, DONE, LAST, METRICS, Run, create_run, same_run

Say = Callable[[str], None]
STOPPED = 128 + signal.SIGTERM
KEPT = (CONFIG, METRICS, "history.png", "figures.csv", "report.html")
"""Files of the run that go beside the archive, where there are such."""


class StoppedJob(MedadError):
    """SageMaker took the machine back, or somebody stopped the job: its checkpoint is there."""


class LeaveCheckpoint(Callback):
    """Writes where the training stands when it is told to end."""

    stopped = False

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Save on SIGTERM and Ctrl-C, which Lightning raises between two batches."""
        if isinstance(exception, KeyboardInterrupt | SystemExit):
            self.stopped = True
            trainer.save_checkpoint(Path(trainer.default_root_dir) / LAST)


def configure(container: Container) -> RunConfig:
    """Resolve the configuration of a job; raises MedadError for what would fail after the training too."""
    options = container.options
    for name in options.formats:
        graph_of(name)
    if options.name:
        check_name(options.name)
    model, overrides = model_named(options.model, options.config, container.overrides)
    source = container.data()
    if source is None and not any(o.startswith("data=") for o in overrides):
        raise MedadError("the job has no data", "Give it an input channel called train")
    return resolve(model, source, options.config, overrides)


def train_job(container: Container, say: Say) -> dict[str, Any]:
    """Train or go on training, export, archive and measure; returns the metrics.

    Raises StoppedJob where the job was told to end; called again, it goes on.
    """
    os.environ.setdefault("MEDAD_CACHE", str(container.work / "cache"))  # on the volume that the job asked for
    with _ending_at_once():
        config = configure(container)
        runs = container.checkpoints / "runs"
        found = same_run(config, runs)
        run = found or create_run(config, runs)
        stands = "trained" if (run.path / DONE).is_file() else "goes on" if (run.path / LAST).is_file() else "begins"
        say(f"run {run.path} {stands}")
        for note in run.table().notes:
            say(f"data: {note}")
        data = run.prepared()
        for fault in data.faults:
            say(f"left out: {fault}")
    _fit(run, data, say)
    with _ending_at_once():
        return _leave(run, container, say)


def _fit(run: Run, data: Prepared, say: Say) -> None:
    watch = LeaveCheckpoint()
    try:
        fit(run, data, say, callbacks=[watch])
    except MedadError as error:
        if watch.stopped:
            raise StoppedJob(f"stopped; the checkpoint is {run.path / LAST}", "Start the job again to go on") from None
        raise error


def _leave(run: Run, container: Container, say: Say) -> dict[str, Any]:
    """Fill the model's folder: archive, index and settings for the server, the artifact and its figures."""
    plot_history(run.path / METRICS, run.path / "history.png")
    options = container.options
    artifact = export_run(run, options.formats, name=options.name, version=options.version, say=say)
    runtime = "onnx" if "onnx" in options.formats else options.formats[0]
    metrics, written = evaluate(artifact, runtime=runtime)
    store = container.model
    store.mkdir(parents=True, exist_ok=True)
    mar = archive(artifact, store, runtime=runtime)
    write_settings(store, mar.name)
    shutil.copytree(artifact, store / "artifact", dirs_exist_ok=True)
    for path in (written, written.with_suffix(".png")):
        shutil.copyfile(path, store / f"metrics{path.suffix}")
    for name in KEPT:
        if (run.path / name).is_file():
            shutil.copyfile(run.path / name, store / name)
    (store / ".lock").unlink(missing_ok=True)
    level = metrics[metrics["unit"]]
    figures = {"auroc": level["auroc"]["value"], "auprc": level["auprc"]["value"]}
    say("test: " + ", ".join(f"test/{name} {value:.4g}" for name, value in figures.items() if value is not None))
    say(f"model: {mar}")
    return metrics


@contextmanager
def _ending_at_once() -> Iterator[None]:
    """End on SIGTERM outside the training: as process 1 of a container, Python would not hear it."""

    def end(_: int, __: FrameType | None) -> None:
        raise StoppedJob("stopped outside the training", "Start the job again to go on")

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
