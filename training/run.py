"""The run directory: ``runs/<experiment>/<timestamp>/`` with configuration, split, checkpoints and log."""

from __future__ import annotations

import io
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import yaml
from torch import Tensor

from medad_serve.data import Given, Prepared, Split, Table, inherit_split, load_prepared, read_table, split_patients
from medad_serve.data.cache import Progress
from medad_serve.errors import MedadError
from medad_serve.files import write_whole
from medad_serve.models import AnomalyModel, Family, family
from medad_serve.spec import read_yaml, validated
from medad_serve.training.config import RunConfig
from medad_serve.training.weights import names_weights

CONFIG, SPLIT, BEST, LAST, METRICS, DONE = (
    "config.yaml",
    "split.json",
    "best.ckpt",
    "last.ckpt",
    "metrics.csv",
    "finished",
)
FINISH = "finish.csv"
LATENT = "latent"


PREFIX = "model."
"""Of the model's weights in a checkpoint of the Lightning task."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, tensors and plain values alone."""
    checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return checkpoint


def write_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write a checkpoint beside its place and rename it: a kill leaves the one before."""
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    write_whole(path, buffer.getvalue())


def weights_of(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """Return the weights under the names that the model itself gives them."""
    return {name.removeprefix(PREFIX): value for name, value in checkpoint["state_dict"].items()}


@dataclass(frozen=True)
class Run:
    """One training run on disk."""

    path: Path
    config: RunConfig
    split: Split

    @property
    def family(self) -> Family:
        """The registered model of the run."""
        return family(self.config.model)

    @property
    def artifact(self) -> Path:
        """Where export writes."""
        return self.path / "artifact"

    def fold(self, number: int) -> Path:
        """Return the folder of one out-of-fold model."""
        return self.path / f"fold_{number}"

    def fold_numbers(self) -> list[int]:
        """Return the numbers of the out-of-fold models, none where calibration is held out."""
        return sorted(set(self.split.folds.values()))

    def folds(self) -> list[Path]:
        """Return the folders of the out-of-fold models."""
        return [self.fold(k) for k in self.fold_numbers()]

    def start(self, fold: int | None = None) -> dict[str, Tensor] | None:
        """Return the weights of the run that training starts from, or of its model that never saw a fold."""
        if self.config.init is None or names_weights(self.config.init):
            return None
        parent = open_run(Path(self.config.init))
        same_folds = parent.split.folds == self.split.folds
        return parent.trained(parent.fold(fold) if fold is not None and same_folds else None).state_dict()

    def table(self) -> Table:
        """Read the data of the run."""
        return read_table(self.config.data, self.config.data_options)

    def prepared(self, progress: Progress | None = None) -> Prepared:
        """Return the prepared data of the run; raises MedadError where patients of its split are gone."""
        table = self.table()
        missing = set(self.split.roles) - set(table.patients())
        if missing:
            raise MedadError(
                f"{len(missing)} patients of the run are not in {self.config.data}",
                "Restore the data it was trained on",
            )
        return load_prepared(table, self.config.prep, self.config.input, progress=progress)

    def build(self) -> AnomalyModel:
        """Build the untrained model."""
        return self.family.build(self.config.prep, self.config.settings)

    def trained(self, folder: Path | None = None) -> AnomalyModel:
        """Return the model with the best weights, in evaluation mode; ``folder`` picks a fold."""
        if not ((folder or self.path) / DONE).is_file():
            raise MedadError(
                f"{folder or self.path} is not trained to its end",
                f"Run: medad-serve train --resume {self.path}",
            )
        path = (folder or self.path) / BEST
        try:
            model = self.build()
            model.load_state_dict(weights_of(read_checkpoint(path)))
        except (OSError, RuntimeError, KeyError, ValueError, EOFError, UnpicklingError) as error:
            raise MedadError(f"{path} cannot be read ({type(error).__name__})", "Train again") from None
        return model.eval()


def create_run(config: RunConfig, root: Path) -> Run:
    """Read the data, draw the split and write a fresh run directory."""
    table = read_table(config.data, config.data_options)
    labels = table.patients()
    supervised = family(config.model).build(config.prep, config.settings).supervised
    if 1 not in labels.values() and (supervised or config.train.monitor.endswith(("auroc", "auprc"))):
        needs = config.model if supervised else f"{config.model} with monitor {config.train.monitor}"
        raise MedadError(
            f"{config.data} holds no abnormal patient, which {needs} needs",
            "Label some as abnormal" if supervised else "Label some as abnormal, or watch val/loss",
        )
    for other in config.report_on:  # what cannot be read is refused before training
        read_table(other, config.options_of(other))
    split = _draw(config, table, labels, supervised)
    _require_abnormal(config, split, labels, supervised)
    stem = _home(config, root) / datetime.now().strftime("%Y%m%d-%H%M%S")
    path, attempt = stem, 1
    while True:
        try:
            path.mkdir(parents=True)
            break
        except FileExistsError:
            attempt += 1
            path = stem.with_name(f"{stem.name}-{attempt}")
        except OSError as error:
            raise MedadError(
                f"{path} cannot be written ({type(error).__name__})", "Choose another --runs folder"
            ) from None
    write_whole(path / SPLIT, split.model_dump_json(indent=1))
    # config.yaml comes last: a folder that has it is a run that can resume.
    write_whole(path / CONFIG, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    return Run(path, config, split)


def _require_abnormal(config: RunConfig, split: Split, labels: dict[str, int], supervised: bool) -> None:
    """Refuse where the data set keeps for the test the abnormal patients that training cannot do without."""
    roles = {role for patient, role in split.roles.items() if labels[patient]}
    if supervised and "train" not in roles:
        raise MedadError(
            f"every abnormal patient of {config.data} tests or chooses, and {config.model} learns from them",
            "Give it data with abnormal patients to train on",
        )
    if config.train.monitor.endswith(("auroc", "auprc")) and "validation" not in roles:
        raise MedadError(
            f"every abnormal patient of {config.data} tests: none is left to watch {config.train.monitor} by",
            "Set train.monitor=val/loss",
        )


def _home(config: RunConfig, root: Path) -> Path:
    """Return the folder that holds the runs of an experiment, or of one of its folds."""
    fold = config.split.fold
    return root / config.experiment / (f"fold_{fold}" if fold is not None else "")


def same_run(config: RunConfig, root: Path) -> Run | None:
    """Return the newest run of exactly this configuration, to go on with it."""
    found = [open_run(p) for p in sorted(_home(config, root).glob("*/")) if is_run(p)]
    wanted = config.model_dump(mode="json")  # what is read back has lists where settings have tuples
    return next((run for run in reversed(found) if run.config.model_dump(mode="json") == wanted), None)


def _draw(config: RunConfig, table: Table, labels: dict[str, int], supervised: bool) -> Split:
    """Draw the split, or keep that of the run which training starts from where its patients are these.

    Diseased patients that a supervised run learned from stay where they are: they chose nothing there.
    """
    parent = open_run(Path(config.init)) if config.init and not names_weights(config.init) else None
    if parent is not None and parent.split.roles.keys() == labels.keys():
        return inherit_split(parent.split, labels, config.split, supervised and not parent.build().supervised)
    return split_patients(
        labels,
        config.split,
        method=config.calibration.method,
        policy=config.calibration.policy,
        given=Given(table.given_roles(), table.given_folds()),
        supervised=supervised,
    )


def is_run(path: Path) -> bool:
    """Whether a folder is a run."""
    return (path / CONFIG).is_file() and (path / SPLIT).is_file()


def open_run(path: Path) -> Run:
    """Open a run directory; the folder of an experiment means its newest run."""
    if not is_run(path):
        runs = sorted(p for p in path.glob("*/") if is_run(p)) if path.is_dir() else []
        folds = sorted(p.name for p in path.glob("fold_*/"))
        if not runs and folds:
            raise MedadError(f"{path} holds folds", f"Name one of them, e.g. {path / folds[0]}")
        if not runs:
            raise MedadError(f"{path} is no run", "Name a folder that medad-serve train wrote, e.g. runs/ae")
        path = runs[-1]
    config = validated(RunConfig, read_yaml(path / CONFIG), str(path / CONFIG))
    try:
        split = Split.model_validate_json((path / SPLIT).read_bytes())
    except ValueError:
        raise MedadError(f"{path / SPLIT} is not valid", "Train again") from None
    return Run(path, config, split)
