"""Timing in turn: what is compared is measured in the same minutes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

Task = Callable[[], object]
Clock = Callable[[], float]
BURST_S = 0.02
"""Time that a turn lasts at least: after others had the caches, the first call says little."""
LEAST_TURNS = 3


@dataclass(frozen=True)
class Turns:
    """Milliseconds of every call of one task, by turn."""

    turns: tuple[tuple[float, ...], ...]

    @property
    def calls(self) -> int:
        """How many calls were timed."""
        return sum(map(len, self.turns))

    @property
    def median(self) -> float:
        """Of all calls."""
        return statistics.median(ms for turn in self.turns for ms in turn)

    def percentile(self, percent: float) -> float | None:
        """Return an upper percentile of all calls; None where they are too few for one to lie beyond it."""
        if self.calls * (100 - percent) < 100:
            return None
        return float(np.percentile([ms for turn in self.turns for ms in turn], percent))

    def calls_per_second(self) -> float:
        """Return the rate at which calls ended."""
        return 1e3 * self.calls / sum(map(sum, self.turns))

    def ratio(self, to: Turns) -> float:
        """Return how many times as long as ``to`` it takes: the median over turns of the ratio of their medians.

        Two turns of the same round lie milliseconds apart, so that what else the machine does weighs on both.
        """
        pairs = zip(self.turns, to.turns, strict=True)
        return statistics.median(statistics.median(mine) / statistics.median(other) for mine, other in pairs)


def in_turns(
    tasks: Mapping[str, Task], seconds: float, clock: Clock = time.perf_counter, *, least: int = LEAST_TURNS
) -> dict[str, Turns]:
    """Run tasks in turn, some calls each, until each had about ``seconds``, and ``least`` turns each.

    Every turn starts with a call that is not counted, where calls are short enough to afford it. A ``clock`` of
    processor time (``time.process_time``) does not see how long others had the processor.
    """
    turns: dict[str, list[tuple[float, ...]]] = {name: [] for name in tasks}
    for task in tasks.values():
        task()
    until = time.perf_counter() + seconds * len(tasks)
    while time.perf_counter() < until or any(len(made) < least for made in turns.values()):
        for name, task in tasks.items():
            turns[name].append(_turn(task, clock))
    return {name: Turns(tuple(made)) for name, made in turns.items()}


def _turn(task: Task, clock: Clock) -> tuple[float, ...]:
    first = _timed(task, clock)
    if first >= BURST_S * 1e3:
        return (first,)
    taken: list[float] = []
    while sum(taken) < BURST_S * 1e3:
        taken.append(_timed(task, clock))
    return tuple(taken)


def _timed(task: Task, clock: Clock = time.perf_counter) -> float:
    start = clock()
    task()
    return (clock() - start) * 1e3
