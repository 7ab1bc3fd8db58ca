"""Train one run: the model, and where calibration is out of fold, one model a fold."""

from __future__ import annotations

import csv
import io
import logging
import sys
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, RichProgressBar
from numpy.typing import NDArray

from medad_serve.calibration import normals_needed
from medad_serve.data import Prepared
from medad_serve.data.samples import Role
from medad_serve.errors import MedadError
from medad_serve.files import write_whole
from medad_serve.models.base import device_for
from medad_serve.training.batches import loader
from medad_serve.training.run import BEST, DONE, LAST, METRICS, Run
from medad_serve.training.task import DetectorTask, direction, logged

Say = Callable[[str], None]


class CsvLog(Callback):
    """One row an epoch in ``metrics.csv``; a resumed run goes on where its checkpoint stands."""

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
        """Tell the epoch and what it logged, if the last line is some time ago."""
        if time.monotonic() - self.last >= self.seconds:
            self.last = time.monotonic()
            figures = ", ".join(
                f"{name} {value:.4g}" for name, value in logged(trainer).items() if "patient" not in name
            )
            self.say(f"epoch {trainer.current_epoch + 1}: {figures}")


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it: a kill leaves the one before."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write one checkpoint."""
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_whole(Path(path), buffer.getvalue())


def _readable(checkpoint: Path) -> bool:
    """Whether a checkpoint can be resumed from; a damaged one is removed, so that training starts over."""
    try:
        torch.load(checkpoint, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return False
    except (OSError, RuntimeError, ValueError, EOFError, UnpicklingError):
        checkpoint.unlink()
        return False
    return True


def _quiet() -> None:
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


def _fit_one(
    run: Run,
    data: Prepared,
    train: NDArray[np.int64],
    validation: NDArray[np.int64],
    folder: Path,
    seed: int,
    say: Say,
    steps: int | None = None,
) -> None:
    """Train into ``folder``: to the best checkpoint, or for a fixed number of optimizer steps."""
    if (folder / DONE).is_file():
        return
    folder.mkdir(exist_ok=True)
    if len(train) < 2:
        raise MedadError(f"{len(train)} healthy training image is too few", "Add healthy patients")
    settings = run.config.train
    L.seed_everything(seed, verbose=False)
    task = DetectorTask(run.build(), settings, data.patients, run.config.calibration.aggregation)
    callbacks = _callbacks(run, folder, steps, say)
    device = device_for(run.config.device)
    trainer = L.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=[device.index or 0] if device.type == "cuda" else 1,
        plugins=[WholeCheckpoints()],
        precision=settings.precision,
        max_epochs=settings.max_epochs if steps is None else -1,
        max_steps=-1 if steps is None else steps,
        gradient_clip_val=settings.gradient_clip,
        callbacks=callbacks,
        logger=False,
        default_root_dir=folder,
        enable_progress_bar=any(isinstance(c, RichProgressBar) for c in callbacks),
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    last = folder / LAST
    try:
        trainer.fit(
            task,
            loader(data.tensor, data.labels, train, settings.batch_size, shuffle=True),
            loader(data.tensor, data.labels, validation, settings.batch_size),
            ckpt_path=str(last) if _readable(last) else None,
        )
    except (KeyboardInterrupt, SystemExit):  # Lightning leaves with a code of its own on SIGINT and SIGTERM
        raise MedadError("training was stopped", f"Go on with: medad-serve train --resume {run.path}") from None
    trainer.save_checkpoint(last)
    if steps is not None:
        trainer.save_checkpoint(folder / BEST, weights_only=True)
    write_whole(folder / DONE, f"{trainer.current_epoch} epochs\n")


def steps_of_best(folder: Path) -> int:
    """Return the optimizer steps that the best checkpoint has seen."""
    return int(torch.load(folder / BEST, map_location="cpu", weights_only=True)["global_step"])


def _require_calibration(run: Run, data: Prepared) -> None:
    """Refuse before training what export would refuse after it: files that failed cost patients."""
    role: Role = "calibration" if run.split.method == "held_out" else "train"
    usable = {data.patients[r] for r in data.rows(run.split.patients(role), label=0)}
    needed = normals_needed(run.config.calibration.policy)
    if len(usable) < needed:
        raise MedadError(
            f"{run.config.calibration.policy} takes {needed} healthy patients to calibrate, {len(usable)} are usable",
            "Mend the files listed, add healthy patients or lower calibration.policy",
        )


def fit(run: Run, data: Prepared, say: Say = lambda _: None) -> None:
    """Train what is not trained yet; call again on the same run to resume it.

    Only healthy training patients are learned from. Validation patients choose the checkpoint; the models of
    out-of-fold calibration take as many optimizer steps as it had, so that their scores stand for its own.
    """
    _quiet()
    training = run.split.patients("train")
    validation = data.rows(run.split.patients("validation"))
    known = set(data.labels[validation].tolist())
    if known != {0, 1}:
        raise MedadError("validation lacks usable images of one class", "Check the faults listed, or add patients")
    _require_calibration(run, data)
    rows = data.rows(training, label=0)
    say(f"{run.config.model}: {len(rows)} training images of {len(training)} healthy patients")
    _fit_one(run, data, rows, validation, run.path, run.config.seed, say)
    folds = run.folds()
    steps = steps_of_best(run.path) if folds else None
    for number, folder in enumerate(folds):
        kept = {p for p in training if run.split.folds[p] != number}
        say(f"fold {number + 1} of {len(folds)}: {len(kept)} patients, for out-of-fold calibration")
        _fit_one(run, data, data.rows(kept, label=0), validation, folder, run.config.seed + 1 + number, say, steps)
