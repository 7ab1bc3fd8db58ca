"""What a sweep searches: a file of ours, or a W&B ``sweep.yaml`` read as it is."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from pydantic import BaseModel, ConfigDict, Field

from medad_serve.errors import MedadError
from medad_serve.spec import Frozen, read_yaml, validated
from medad_serve.training.config import SWEEP, known_keys
from medad_serve.training.dimensions import (
    Dimension,
    Method,
    Number,
    Space,
    as_number,
    distribution,
    interval,
    listed,
)

_SAME_FOR_ALL = ("model", "experiment", "data", "init", "split", "input", "calibration")
"""Settings that change what is measured, not how well: trials would not compare."""


class _Range(Frozen):
    low: Number
    high: Number
    log: bool = False
    step: Number | None = Field(None, gt=0)


class _Foreign(BaseModel):
    """What W&B reads and we do not (program, command, project) is left alone."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class _Metric(_Foreign):
    name: str
    goal: Literal["minimize", "maximize"] = "minimize"


class _Hyperband(_Foreign):
    type: Literal["hyperband"]
    min_iter: int = Field(1, ge=1)
    eta: int = Field(3, ge=2)


class _Parameter(Frozen):
    value: Any = None
    values: list[Any] | None = None
    distribution: str | None = None
    min: Number | None = None
    max: Number | None = None
    q: Number = Field(1, gt=0)

    def kind(self) -> str:
        """Return the distribution, as W&B takes it where none is named."""
        if self.distribution:
            return self.distribution
        if "value" in self.model_fields_set:
            return "constant"
        if self.values is not None:
            return "categorical"
        return "int_uniform" if isinstance(self.min, int) and isinstance(self.max, int) else "uniform"

    def ends(self) -> tuple[Number, Number]:
        if self.min is None or self.max is None:
            raise ValueError("min and max are needed")
        return self.min, self.max


class _Wandb(_Foreign):
    method: Method
    parameters: dict[str, dict[str, Any]]
    metric: _Metric | None = None
    run_cap: int | None = Field(None, ge=1)
    early_terminate: _Hyperband | None = None


def space_path(name: str) -> Path:
    """Return the file that ``--space`` names: a path, or a space that comes with the recipes."""
    if Path(name).is_file():
        return Path(name)
    recipes = Path(str(files("medad_serve.training"))) / "recipes"
    known = sorted(p.stem for p in recipes.glob(f"*{SWEEP}.yaml"))
    if name in known:
        return recipes / f"{name}.yaml"
    raise MedadError(f"there is no space {name!r}", f"Name a YAML file, or one of: {', '.join(known)}")


def read_space(name: str, model: str) -> Space:
    """Read a space for a model: ``key: [values]`` or ``key: {low, high, log, step}``, or a W&B sweep.

    Names are settings by their dotted name, or by its last part where only one setting ends in it. Raises
    MedadError for an unknown name, saying the nearest, and for a distribution that cannot be searched.
    """
    path = space_path(name)
    data = read_yaml(path)
    read = _wandb if "parameters" in data else _ours
    space = read(data, str(path), known_keys(model))
    keys = [d.key for d in space.dimensions]
    if not keys:
        raise MedadError(f"{path} names nothing to search", "Write e.g. train.learning_rate: [1.0e-3, 1.0e-4]")
    if unfair := [k for k in keys if k.split(".")[0] in _SAME_FOR_ALL]:
        raise MedadError(f"{path}: {unfair[0]} cannot be searched, trials would not compare", "Set it for all of them")
    if twice := [k for k in keys if keys.count(k) > 1]:
        raise MedadError(f"{path} names {twice[0]} twice", "Keep one of them")
    return space


def _key(name: str, known: set[str], source: str) -> str:
    """Return the dotted name of a setting."""
    ends: dict[str, list[str]] = {}
    for key in sorted(known):
        ends.setdefault(key.split(".")[-1], []).append(key)
    found = [name] if name in known else ends.get(name, [])
    if len(found) != 1:
        last = name.split(".")[-1]
        close = difflib.get_close_matches(name, known, 1) or difflib.get_close_matches(last, ends, 1, 0.5)
        near = found or ends.get(last) or [key for c in close for key in ([c] if c in known else ends[c])]
        hint = f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(sorted(known))}"
        raise MedadError(f"{source}: there is no one setting {name!r}", hint)
    return found[0]


def _ours(data: dict[str, Any], source: str, known: set[str]) -> Space:
    dimensions = []
    for name, what in data.items():
        key = _key(str(name), known, source)
        if isinstance(what, list):
            made = distribution(source, name, listed, what)
        elif isinstance(what, dict):
            span = validated(_Range, what, f"{source}: {name}")
            made = distribution(source, name, interval, span.low, span.high, span.step, span.log)
        else:
            raise MedadError(f"{source}: {name} is neither values nor a range", "Write [a, b] or {low: a, high: b}")
        dimensions.append(Dimension(key, made))
    return Space(tuple(dimensions))


def _flat(parameters: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the parameters of a W&B file; nested ones by dotted names."""
    for name, what in parameters.items():
        if isinstance(what, dict) and isinstance(what.get("parameters"), dict):
            yield from _flat(what["parameters"], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", what


def _distribution(parameter: _Parameter) -> BaseDistribution:
    """Return the distribution of a W&B parameter; raises ValueError where Optuna has none like it."""
    kind = parameter.kind()
    if kind == "categorical":
        return listed(parameter.values or [])
    low, high = parameter.ends()
    if kind == "int_uniform":
        return IntDistribution(int(low), int(high))
    if kind == "uniform":
        return FloatDistribution(low, high)
    if kind == "q_uniform":
        return interval(low, high, parameter.q)
    if kind == "log_uniform_values":
        return FloatDistribution(low, high, log=True)
    if kind == "log_uniform":  # W&B takes the exponents
        return FloatDistribution(math.exp(low), math.exp(high), log=True)
    raise ValueError(f"distribution {kind} is not known here")


def _wandb_metric(name: str, source: str) -> str:
    """Return our name of a metric: ``val_loss`` and ``validation/loss`` are ``val/loss``."""
    found = re.fullmatch(r"(train|val|valid|validation)[/_.](\w+)", name)
    if found is None:
        raise MedadError(f"{source}: metric {name!r} is none of ours", "Write e.g. val/loss or val/auroc")
    return f"{'train' if found[1] == 'train' else 'val'}/{found[2]}"


def _wandb(data: dict[str, Any], source: str, known: set[str]) -> Space:
    file = validated(_Wandb, data, source)
    dimensions, fixed = [], []
    for name, what in _flat(file.parameters):
        parameter = validated(_Parameter, what, f"{source}: {name}")
        key = _key(name, known, source)
        if parameter.kind() == "constant":
            fixed.append(f"{key}={json.dumps(as_number(parameter.value))}")
            continue
        made = distribution(source, name, _distribution, parameter)
        dimensions.append(Dimension(key, made))
    early = file.early_terminate
    return Space(
        tuple(dimensions),
        tuple(fixed),
        file.method,
        _wandb_metric(file.metric.name, source) if file.metric else None,
        ("max" if file.metric.goal == "maximize" else "min") if file.metric else None,
        file.run_cap,
        {"min_resource": early.min_iter, "reduction_factor": early.eta} if early else None,
    )
