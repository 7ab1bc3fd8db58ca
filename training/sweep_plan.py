"""What a sweep was asked for: resolved, checked, and how it draws and ends its trials."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
from optuna.distributions import distribution_to_json

from medad_serve.errors import MedadError
from medad_serve.models import families
from medad_serve.spec import read_yaml
from medad_serve.training.config import RunConfig, recipe_path, resolve
from medad_serve.training.dimensions import Method, Space
from medad_serve.training.space import read_space
from medad_serve.training.task import direction

Prune = Literal["median", "hyperband", "none"]
DEFAULT_TRIALS = 20
STARTUP_TRIALS = 5
"""Trials that the median needs before it ends any: Optuna's default."""


@dataclass(frozen=True)
class Plan:
    """What a sweep was asked for, resolved and checked."""

    model: str
    recipe: str | None
    data: str | None
    overrides: tuple[str, ...]
    space: Space
    base: RunConfig
    metric: str
    mode: Literal["min", "max"]
    method: Method
    prune: Prune
    trials: int

    def config(self, values: dict[str, Any]) -> RunConfig:
        """Return the configuration of a trial."""
        chosen = [d.override(values[d.key]) for d in self.space.dimensions if d.key in values]
        return resolve(self.model, self.data, self.recipe, [*self.overrides, *chosen])

    def identity(self) -> dict[str, Any]:
        """Return, by name, what must not change while a study goes on."""
        base = self.base.model_dump(mode="json", exclude={"device", "logger"})
        space = {d.key: distribution_to_json(d.distribution) for d in self.space.dimensions}
        facts = {"metric": self.metric, "mode": self.mode, "method": self.method}
        return {**_dotted(base), **{f"space of {key}": text for key, text in space.items()}, **facts}

    def sampler(self, number: int) -> optuna.samplers.BaseSampler:
        """Return the sampler of a trial; its seed follows the number, so that a resumed study draws no value twice."""
        if self.method == "grid":
            return optuna.samplers.GridSampler({d.key: d.points() for d in self.space.dimensions}, self.base.seed)
        seed = int(np.random.SeedSequence([self.base.seed, number]).generate_state(1)[0])
        return (optuna.samplers.TPESampler if self.method == "bayes" else optuna.samplers.RandomSampler)(seed=seed)

    def pruner(self) -> optuna.pruners.BasePruner:
        """Return what ends bad trials early."""
        epochs = self.base.train.max_epochs
        if self.prune == "median":
            return optuna.pruners.MedianPruner(STARTUP_TRIALS, n_warmup_steps=epochs // 10)
        if self.prune == "hyperband":
            return optuna.pruners.HyperbandPruner(max_resource=epochs, **(self.space.hyperband or {}))
        return optuna.pruners.NopPruner()


def _dotted(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in data.items():
        out.update(_dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return out


def _model_of(recipe: str) -> tuple[str, str | None]:
    """Return the model and the configuration that a recipe's or a model's name stands for."""
    if recipe in families() and not Path(recipe).is_file():
        return recipe, None
    model = read_yaml(recipe_path(recipe)).get("model")
    if model is None:
        raise MedadError(f"{recipe} names no model", "Add a line such as model: ae")
    return str(model), recipe


def make_plan(
    recipe: str,
    space: str,
    *,
    data: str | None = None,
    overrides: tuple[str, ...] = (),
    metric: str | None = None,
    method: Method | None = None,
    prune: Prune | None = None,
    trials: int | None = None,
) -> Plan:
    """Resolve a sweep; every value of the space is tried on the configuration before anything is written.

    What is not given is read from the space, else: the value that training monitors, a Bayesian search of 20
    trials (all points of a grid), pruned by the median. Raises MedadError for an unknown or mistyped setting.
    """
    model, config = _model_of(recipe)
    found = read_space(space, model)
    pairs = (*found.fixed, *overrides)
    if both := {d.key for d in found.dimensions} & {pair.partition("=")[0] for pair in pairs}:
        raise MedadError(f"{min(both)} is searched and given", "Remove it from the space or from the command")
    base = resolve(model, data, config, pairs)
    watched = metric or found.metric or base.train.monitor
    if not watched.startswith(("train/", "val/")):
        raise MedadError(f"{watched!r} is no metric of training", "Name e.g. val/loss or val/auroc")
    chosen: Method = method or found.method or "bayes"
    size = found.size() if chosen == "grid" else None
    plan = Plan(
        model,
        config,
        data,
        pairs,
        found,
        base,
        watched,
        found.goal if found.goal and watched == found.metric else direction(watched),
        chosen,
        prune or ("hyperband" if found.hyperband else "median"),
        trials or found.trials or size or DEFAULT_TRIALS,
    )
    for dimension in found.dimensions:
        for value in dimension.extremes():
            plan.config({dimension.key: value})
    return plan
