"""What a trial may take: the settings that are searched, each with its values."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from medad_serve.errors import MedadError

Method = Literal["grid", "random", "bayes"]
Number = int | float
_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


@dataclass(frozen=True)
class Dimension:
    """One setting that is searched, by its dotted name."""

    key: str
    distribution: BaseDistribution

    def suggest(self, trial: optuna.Trial) -> Any:
        """Return the value that a trial takes."""
        kind = self.distribution
        if isinstance(kind, CategoricalDistribution):
            return trial.suggest_categorical(self.key, kind.choices)
        if isinstance(kind, IntDistribution):
            return trial.suggest_int(self.key, kind.low, kind.high, step=kind.step, log=kind.log)
        assert isinstance(kind, FloatDistribution)
        return trial.suggest_float(self.key, kind.low, kind.high, step=kind.step, log=kind.log)

    def override(self, value: Any) -> str:
        """Return ``key=value`` as the command line takes it."""
        # Lists are choices as JSON, which YAML reads; a text that looks like one stays text by its quotes.
        is_list = isinstance(value, str) and value[:1] in ("[", "{")
        return f"{self.key}={value if is_list else json.dumps(value)}"

    def extremes(self) -> tuple[Any, ...]:
        """Return values that are enough to tell whether the setting takes them: every choice, or both ends."""
        kind = self.distribution
        if isinstance(kind, CategoricalDistribution):
            return kind.choices
        assert isinstance(kind, IntDistribution | FloatDistribution)
        return (kind.low, kind.high)

    def points(self) -> tuple[Any, ...]:
        """Return every value, for a grid; raises MedadError for a range without a step."""
        kind = self.distribution
        if isinstance(kind, CategoricalDistribution):
            return kind.choices
        if isinstance(kind, IntDistribution):
            return tuple(range(kind.low, kind.high + 1, kind.step))
        assert isinstance(kind, FloatDistribution)
        if kind.step is None:
            raise MedadError(f"{self.key} has no end of values for a grid", "List values, give a step or use random")
        count = round((kind.high - kind.low) / kind.step)
        return tuple(kind.low + i * kind.step for i in range(count + 1))


@dataclass(frozen=True)
class Space:
    """What is searched, and what the file says of how."""

    dimensions: tuple[Dimension, ...]
    fixed: tuple[str, ...] = ()
    """``key=value`` of parameters with one value."""
    method: Method | None = None
    metric: str | None = None
    goal: Literal["min", "max"] | None = None
    trials: int | None = None
    hyperband: dict[str, int] | None = None
    """``min_resource`` and ``reduction_factor``, where the file asks to end bad trials by Hyperband."""

    def size(self) -> int:
        """Return the number of points of the grid."""
        return math.prod(len(d.points()) for d in self.dimensions)


def as_number(value: Any) -> Any:
    """Read ``1e-4``, which YAML 1.1 takes for text, as the number that it is."""
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value


def listed(values: list[Any]) -> CategoricalDistribution:
    """Return a choice of values; lists among them become JSON. Raises ValueError for none, or one twice."""
    plain = [as_number(v) for v in values]
    kept = [v if v is None or isinstance(v, bool | int | float | str) else json.dumps(v) for v in plain]
    if len({json.dumps(v) for v in kept}) < len(kept):
        raise ValueError("a value is there twice")
    return CategoricalDistribution(kept)


def interval(low: Number, high: Number, step: Number | None = None, log: bool = False) -> BaseDistribution:
    """Return an even or logarithmic range: of whole numbers where all its numbers are."""
    if isinstance(low, int) and isinstance(high, int) and isinstance(step, int | None):
        return IntDistribution(low, high, log=log, step=step or 1)
    return FloatDistribution(low, high, log=log, step=step)


def distribution(source: str, name: str, make: Callable[..., BaseDistribution], *args: Any) -> BaseDistribution:
    """Build a distribution; what Optuna refuses becomes one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the upper end is lowered to the last step
            return make(*args)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise MedadError(f"{source}: {name} cannot be searched ({reason})", "Correct its range or values") from None
