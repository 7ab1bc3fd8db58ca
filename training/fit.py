"""Train one run: the model, and where calibration is out of fold, one model a fold."""

from __future__ import annotations

import csv
import logging
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import Logger
from numpy.typing import NDArray

from medad_serve.calibration import normals_needed
from medad_serve.data import Prepared
from medad_serve.data.samples import Role
from medad_serve.errors import MedadError
from medad_serve.files import write_whole
from medad_serve.models import AnomalyModel
from medad_serve.models.base import device_for
from medad_serve.training.augment import Augment, AugmentSettings
from medad_serve.training.batches import loader
from medad_serve.training.config import TrainSettings
from medad_serve.training.finish import Normals, finish_model, save_codes
from medad_serve.training.loggers import run_loggers
from medad_serve.training.run import BEST, DONE, LAST, METRICS, Run, read_checkpoint, write_checkpoint
from medad_serve.training.task import DetectorTask, direction, logged
from medad_serve.training.weights import names_weights, read_weights

Say = Callable[[str], None]


class CsvLog(Callback):
    """One row a validated epoch in ``metrics.csv``; a resumed run goes on where its checkpoint stands."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Drop rows of epochs that will be trained again."""
        rows = []
        if self.path.is_file() and trainer.current_epoch:
            with self.path.open(newline="") as file:
                rows = [r for r in csv.reader(file) if r[0] == "epoch" or int(r[0]) < trainer.current_epoch]
        write_whole(self.path, "".join(",".join(r) + "\n" for r in rows))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Append what the epoch logged."""
        if (trainer.current_epoch + 1) % (trainer.check_val_every_n_epoch or 1):
            return
        values = logged(trainer)
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file)
            if file.tell() == 0:
                writer.writerow(["epoch", *values])
            writer.writerow([trainer.current_epoch, *(f"{v:.8g}" for v in values.values())])


class Progress(Callback):
    """A line now and then, where no progress bar is seen."""

    def __init__(self, say: Say, seconds: float = 20) -> None:
        self.say, self.seconds, self.last = say, seconds, time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Tell the epoch and what it logged, if the last line is some time ago or this epoch is the last."""
        long_ago = time.monotonic() - self.last >= self.seconds
        if long_ago or trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs:
            self.last = time.monotonic()
            figures = ", ".join(
                f"{name} {value:.4g}" for name, value in logged(trainer).items() if "patient" not in name
            )
            self.say(f"epoch {trainer.current_epoch + 1}: {figures}")


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write one checkpoint."""
        write_checkpoint(Path(path), checkpoint)


def _readable(checkpoint: Path) -> bool:
    """Whether a checkpoint can be resumed from; a damaged one is removed, so that training starts over."""
    try:
        read_checkpoint(checkpoint)
    except FileNotFoundError:
        return False
    except (OSError, RuntimeError, ValueError, EOFError, UnpicklingError):
        checkpoint.unlink()
        return False
    return True


def quiet() -> None:
    """Keep Lightning's advice on hardware and workers from the user; its errors still come through."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*")
    warnings.filterwarnings("ignore", message=r".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\).*")


def _callbacks(run: Run, folder: Path, steps: int | None, say: Say) -> list[Callback]:
    train = run.config.train
    mode = direction(train.monitor)
    last = ModelCheckpoint(
        dirpath=folder,
        filename=Path(LAST).stem,
        train_time_interval=timedelta(seconds=train.checkpoint_seconds),
        enable_version_counter=False,
    )
    shown: Callback = RichProgressBar() if sys.stderr.isatty() else Progress(say)
    always: list[Callback] = [last, CsvLog(folder / METRICS), shown]
    if steps is not None:
        return always
    best = ModelCheckpoint(
        dirpath=folder,
        filename=Path(BEST).stem,
        monitor=train.monitor,
        mode=mode,
        save_weights_only=True,
        enable_version_counter=False,
    )
    stop = EarlyStopping(train.monitor, min_delta=train.min_delta, patience=train.patience, mode=mode)
    return [best, stop, *always]


@dataclass(frozen=True)
class Job:
    """One model to train: the run's own, or that of a fold of out-of-fold calibration."""

    run: Run
    data: Prepared
    train: NDArray[np.int64]
    """Rows that are learned from."""
    validation: NDArray[np.int64]
    folder: Path
    fold: int | None = None
    steps: int | None = None
    """Optimizer steps to take; none trains to the best checkpoint."""

    @property
    def seed(self) -> int:
        """Seed of this model."""
        return self.run.config.seed + (0 if self.fold is None else 1 + self.fold)

    def horizon(self) -> int:
        """Return the optimizer steps of a whole training on these rows."""
        settings = self.run.config.train
        return settings.max_epochs * max(1, len(self.train) // settings.batch_size)

    def augment(self) -> Augment | None:
        """Return what varies the training items, if anything does."""
        settings = self.run.config.train.augment
        return None if settings == AugmentSettings() else Augment(settings, self.seed, self.run.config.prep.values)

    def model(self, say: Say) -> AnomalyModel:
        """Build the model, with the weights that it starts from, and tell what it takes of a file of them."""
        model = self.run.build()
        init = self.run.config.init
        if init and names_weights(init):
            for line in model.start_partly(read_weights(init)).lines():
                say(f"init: {line}")
        weights = self.run.start(self.fold)
        if weights is not None:
            try:
                model.start_from(weights)
            except RuntimeError:
                raise MedadError("the weights of init do not fit this model", "Name a run of a fitting one") from None
        return model


def trainer_for(
    settings: TrainSettings,
    device: torch.device,
    folder: Path,
    callbacks: list[Callback],
    *,
    steps: int | None = None,
    loggers: list[Logger] | Literal[False] = False,
) -> L.Trainer:
    """Return the trainer of a detector: for whole epochs, or for a fixed number of optimizer steps."""
    return L.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=[device.index or 0] if device.type == "cuda" else 1,
        plugins=[WholeCheckpoints()],
        precision=settings.precision,
        max_epochs=settings.max_epochs if steps is None else -1,
        check_val_every_n_epoch=min(settings.validate_every, settings.max_epochs),
        max_steps=-1 if steps is None else steps,
        gradient_clip_val=settings.gradient_clip,
        callbacks=callbacks,
        logger=loggers,
        default_root_dir=folder,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        enable_progress_bar=any(isinstance(c, RichProgressBar) for c in callbacks),
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )


def _train(job: Job, say: Say, more: Sequence[Callback], loggers: list[Logger] | Literal[False] = False) -> None:
    """Train into the job's folder: to the best checkpoint, or for a fixed number of optimizer steps."""
    folder, settings, steps, config = job.folder, job.run.config.train, job.steps, job.run.config
    if (folder / DONE).is_file():
        return
    folder.mkdir(exist_ok=True)
    if len(job.train) < 2:
        raise MedadError(f"{len(job.train)} training image is too few", "Add healthy patients")
    L.seed_everything(job.seed, verbose=False)
    task = DetectorTask(
        job.model(say), settings, job.data.patients, config.calibration.aggregation, job.horizon(), job.augment()
    )
    callbacks = [*_callbacks(job.run, folder, steps, say), *more]
    device = device_for(config.device)
    trainer = trainer_for(settings, device, folder, callbacks, steps=steps, loggers=loggers)
    last = folder / LAST
    gpu, size = device.type == "cuda", settings.batch_size
    watched = loader(job.data.tensor, job.data.labels, job.validation, size, pinned=gpu)
    try:
        trainer.fit(
            task,
            loader(job.data.tensor, job.data.labels, job.train, size, shuffle=True, pinned=gpu),
            watched,
            ckpt_path=str(last) if _readable(last) else None,
        )
    except (KeyboardInterrupt, SystemExit):  # Lightning leaves with a code of its own on SIGINT and SIGTERM
        raise MedadError("training was stopped", f"Go on with: medad-serve train --resume {job.run.path}") from None
    trainer.save_checkpoint(last)
    if steps is not None:
        trainer.save_checkpoint(folder / BEST, weights_only=True)
    train = Normals(job.data, job.train, settings.batch_size, device, job.augment())
    held_out = Normals(job.data, job.validation, settings.batch_size, device)
    finish_model(task.model, folder, train, held_out, watched)
    write_whole(folder / DONE, f"{trainer.current_epoch} epochs\n")


def steps_of_best(folder: Path) -> int:
    """Return the optimizer steps that the best checkpoint has seen."""
    return int(read_checkpoint(folder / BEST)["global_step"])


def _require_calibration(run: Run, data: Prepared) -> None:
    """Refuse before training what export would refuse after it: files that failed cost patients."""
    if run.split.method == "validation":
        return
    role: Role = "calibration" if run.split.method == "held_out" else "train"
    usable = {data.patients[r] for r in data.rows(run.split.patients(role), label=0)}
    needed = normals_needed(run.config.calibration.policy)
    if len(usable) < needed:
        raise MedadError(
            f"{run.config.calibration.policy} takes {needed} healthy patients to calibrate, {len(usable)} are usable",
            "Mend the files listed, add healthy patients or lower calibration.policy",
        )


def fit(
    run: Run,
    data: Prepared,
    say: Say = lambda _: None,
    *,
    callbacks: Sequence[Callback] = (),
    folds: bool = True,
) -> None:
    """Train what is not trained yet; call again on the same run to resume it.

    Only healthy training patients are learned from, but for supervised models. Validation patients choose the
    checkpoint; the models of out-of-fold calibration (left out without ``folds``) take as many optimizer steps
    as it had, so that their scores stand for its own. ``callbacks`` watch the run's own model.
    """
    quiet()
    training = run.split.patients("train")
    validation = data.rows(run.split.patients("validation"))
    known = set(data.labels[validation].tolist())
    abnormal = {patient for patient, label in run.table().patients().items() if label}
    # A data set that keeps its abnormal patients for the test leaves none to choose the checkpoint by.
    chosen_by = abnormal & run.split.patients("train", "validation", "calibration")
    if 0 not in known or (chosen_by and 1 not in known):
        raise MedadError("validation lacks usable images of one class", "Check the faults listed, or add patients")
    if not abnormal:
        say("no patient is abnormal: only specificity will be measured")
    if run.split.method == "validation":
        say("cross-validation makes no cutoffs: this run can be evaluated, not exported")
    _require_calibration(run, data)
    learned = None if run.build().supervised else 0
    rows = data.rows(training, learned)
    say(f"{run.config.model}: {len(rows)} training images of {len(training)} patients")
    if not (run.path / DONE).is_file():
        with run_loggers(run.config, run.path) as loggers:
            _train(Job(run, data, rows, validation, run.path), say, callbacks, loggers)
    save_codes(run, data)
    numbers = run.fold_numbers() if folds else []
    steps = steps_of_best(run.path) if numbers else None
    for number in numbers:
        kept = {p for p in training if run.split.folds.get(p) != number}
        say(f"fold {number + 1} of {len(numbers)}: {len(kept)} patients, for out-of-fold calibration")
        _train(Job(run, data, data.rows(kept, learned), validation, run.fold(number), number, steps), say, ())
