"""Has an engine that serves become slower? Ratios of this run against those that were committed.

Milliseconds differ between two minutes of one machine; how many times as much processor time the eager model takes, in
turns, differs less. By how much is measured when the ratios are: in two passes, engines opened anew for each.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from medad_serve.bench.engines import engines
from medad_serve.bench.engines.base import EAGER
from medad_serve.bench.measure import Plan
from medad_serve.bench.results import Benchmark
from medad_serve.errors import MedadError
from medad_serve.spec import Frozen, validated

FILE = "ratios.json"
MARGIN = 2.0
"""A ratio may fall by so many times the largest change between the two passes."""


LARGEST = 0.3
"""Share by which a ratio may fall at most: a guard that lets more pass guards nothing."""


class Ratios(Frozen):
    """Speeds relative to the eager model, how far they may fall, and on what machine that holds."""

    machine: str
    """By :attr:`medad_serve.bench.machine.Machine.kind`."""
    seconds: float
    """Of each engine at each batch size."""
    tolerance: float
    """``MARGIN`` times the largest change, as a share, that any of those kept showed between two passes."""
    ratios: dict[str, dict[str, float]]
    """By model, then by engine and batch, of both passes in the geometric mean."""
    unsteady: tuple[str, ...] = ()
    """What changed too much between the passes to guard anything: the tolerance never exceeds ``LARGEST``."""


class Compared(Frozen):
    """One ratio, then and now."""

    model: str
    engine: str
    before: float
    now: float | None
    """None where it did not run."""
    worse: bool


def guard_plan(seconds: float) -> Plan:
    """Return what a pass measures: the eager model and the engines that serve, none started anew.

    With one thread and by processor time: on a machine with other work, threads that wait for each other take many
    times as long, and PyTorch's more than onnxruntime's.
    """
    only = (EAGER, *(each.name for each in engines().values() if each.served))
    return Plan(threads=(1,), seconds=seconds, only=only, cold=False, clock=time.process_time)


def ratios_of(benchmark: Benchmark) -> dict[str, float]:
    """Return the ratio of every engine that serves, at every batch size, e.g. of ``onnxruntime int8, batch 8``."""
    return {
        f"{each.label}, batch {t.batch}": t.ratio
        for each in benchmark.measured
        if each.label != benchmark.reference
        for t in each.times
    }


Passes = Mapping[str, tuple[Mapping[str, float], Mapping[str, float]]]


def settle(passes: Passes, machine: str, seconds: float) -> Ratios:
    """Return the ratios of two passes of every model, and the tolerance that their changes call for."""
    ratios: dict[str, dict[str, float]] = {}
    largest, unsteady = 0.0, []
    for model, (first, second) in passes.items():
        ratios[model] = {}
        for name in sorted(first.keys() & second.keys()):
            change = abs(math.log(first[name] / second[name]))
            if _tolerated(change) > LARGEST:
                unsteady.append(f"{model}: {name}")
                continue
            largest = max(largest, change)
            ratios[model][name] = round(math.sqrt(first[name] * second[name]), 3)
    return Ratios(
        machine=machine,
        seconds=seconds,
        tolerance=round(_tolerated(largest), 3),
        ratios=ratios,
        unsteady=tuple(unsteady),
    )


def joined(new: Ratios, kept: Ratios) -> Ratios:
    """Return new ratios with those of the other models that were kept; what either tolerates is tolerated."""
    others = {model: each for model, each in kept.ratios.items() if model not in new.ratios}
    unsteady = [each for each in kept.unsteady if each.partition(":")[0] in others]
    return new.model_copy(
        update={
            "tolerance": max(new.tolerance, kept.tolerance),
            "ratios": dict(sorted({**others, **new.ratios}.items())),
            "unsteady": tuple(sorted([*unsteady, *new.unsteady])),
        }
    )


def _tolerated(change: float) -> float:
    """Return the share by which a ratio may fall, of the logarithm of what it changed by between two passes."""
    return 1 - math.exp(-MARGIN * change)


def read_ratios(folder: Path, machine: str) -> Ratios:
    """Read committed ratios; raises MedadError where there are none, or those of another machine."""
    path = folder / FILE
    if not path.is_file():
        raise MedadError(f"{path} is missing", "Run: make bench")
    ratios = _parsed(path)
    if ratios.machine != machine:
        raise MedadError(
            f"{path} was measured on {ratios.machine}; this is {machine}, where other ratios hold",
            "Run make bench here at a revision that you trust, then make bench-check at this one",
        )
    return ratios


def _parsed(path: Path) -> Ratios:
    try:
        data = json.loads(path.read_bytes())
    except ValueError:
        raise MedadError(f"{path} is not JSON", "Run: make bench") from None
    return validated(Ratios, data, str(path))


def compare(before: Ratios, model: str, now: Mapping[str, float]) -> list[Compared]:
    """Hold the ratios of a model against the committed ones; what no longer runs is worse too."""
    found = []
    for name, ratio in before.ratios[model].items():
        here = now.get(name)
        worse = here is None or here < ratio * (1 - before.tolerance)
        found.append(Compared(model=model, engine=name, before=ratio, now=here, worse=worse))
    return found


def better_of(first: Iterable[Compared], second: Iterable[Compared]) -> list[Compared]:
    """Keep of two tries the better one: a disturbance ends, a regression does not."""
    return [max(pair, key=lambda each: each.now or 0.0) for pair in zip(first, second, strict=True)]
