"""Loggers beside ``metrics.csv``: TensorBoard and Weights & Biases, told the figures and nothing of the data."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from medad_serve.errors import MedadError

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

    from medad_serve.training.config import RunConfig

LoggerName = Literal["none", "tensorboard", "wandb"]
PROJECT = "medad-serve"
"""Of W&B, unless ``WANDB_PROJECT`` names one."""
_UNTOLD = {"data", "data_options", "init", "logger"}
"""Fields that name folders, and what is no hyperparameter."""


def require_logger(name: LoggerName) -> None:
    """Raise MedadError where the package of a logger is not installed."""
    if name != "none" and find_spec(name) is None:
        raise MedadError(f"logger={name} needs a package that is not here", f"Run: pip install 'medad-serve[{name}]'")


def run_name(config: RunConfig) -> str:
    """Return what a run is called in a logger: ``{experiment}_fold{fold}``, or the experiment."""
    return config.experiment if config.split.fold is None else f"{config.experiment}_fold{config.split.fold}"


def _tensorboard(config: RunConfig, path: Path) -> Logger:
    from lightning.pytorch.loggers import TensorBoardLogger

    return TensorBoardLogger(path / "tensorboard", name=run_name(config), version="", default_hp_metric=False)


def _wandb(config: RunConfig, path: Path) -> Logger:
    """Return a W&B logger that keeps what it writes below ``path``; a resumed run goes on under its id."""
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    folder = path.resolve() / "wandb"
    for name in ("CACHE", "CONFIG", "DATA"):
        os.environ.setdefault(f"WANDB_{name}_DIR", str(folder / name.lower()))
    settings = wandb.Settings(
        # The command line, the console and the repository name folders, hosts and people.
        console="off",
        disable_git=True,
        disable_code=True,
        save_code=False,
        x_disable_meta=True,
        x_disable_machine_info=True,
        host="local",
        silent=True,
    )
    return WandbLogger(
        name=run_name(config),
        save_dir=path,
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        id=hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16],
        resume="allow",
        settings=settings,
    )


@contextmanager
def run_loggers(config: RunConfig, path: Path) -> Iterator[list[Logger] | Literal[False]]:
    """Yield what ``Trainer(logger=...)`` takes and close it at the end, so that another run can begin.

    ``path`` is the run directory: everything that a logger writes lies below it. ``WANDB_MODE=offline`` keeps
    W&B from the network. Raises MedadError where the package is not installed.
    """
    require_logger(config.logger)
    if config.logger == "none":
        yield False
        return
    logger = (_tensorboard if config.logger == "tensorboard" else _wandb)(config, path)
    logger.log_hyperparams(config.model_dump(mode="json", exclude=_UNTOLD))
    status = "failed"
    try:
        yield [logger]
        status = "success"
    finally:
        logger.finalize(status)
        if config.logger == "wandb":
            import wandb

            wandb.finish(exit_code=0 if status == "success" else 1)
