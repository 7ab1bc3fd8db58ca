"""Timing in turn: what is compared is measured in the same minutes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

Timings = dict[str, float]


def interleaved(tasks: dict[str, Callable[[], object]], rounds: int) -> Timings:
    """Return the median milliseconds of each task, run in turn so that a noisy machine disturbs all alike."""
    taken: dict[str, list[float]] = {name: [] for name in tasks}
    for number in range(rounds + 1):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            if number:  # the first round warms caches
                taken[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(values) for name, values in taken.items()}
