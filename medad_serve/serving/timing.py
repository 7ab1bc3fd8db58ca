"""What a handler spent on each request, told in the ``Server-Timing`` header (W3C) of those who ask for it."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping

ASKED, TOLD = "X-Medad-Timing", "Server-Timing"
"""Headers of a request and of its answer."""
WHOLE = "handle"
"""Beside the stages: what all of the batch took, and so every request in it."""
_ENTRY = re.compile(r"([\w-]+);dur=(\d+(?:\.\d+)?)")


class Laps:
    """Milliseconds from one step of a batch to the next, kept by request and stage."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._ms: dict[int, dict[str, float]] = {}

    def skip(self) -> None:
        """Begin the next lap now: what passed was nobody's alone."""
        self._last = time.perf_counter()

    def lap(self, index: int, stage: str) -> None:
        """Put what passed since the lap before down to a stage of one request."""
        now = time.perf_counter()
        self._ms.setdefault(index, {})[stage] = (now - self._last) * 1e3
        self._last = now

    def told(self, index: int, others: Mapping[str, float]) -> str:
        """Return the header's value for one request; ``others`` are its stages that were measured elsewhere."""
        return write_timing({**self._ms.get(index, {}), **others, WHOLE: (time.perf_counter() - self._start) * 1e3})


def write_timing(ms: Mapping[str, float]) -> str:
    """Return milliseconds by stage as the value of ``Server-Timing``."""
    return ", ".join(f"{stage};dur={value:.3f}" for stage, value in ms.items())


def read_timing(text: str) -> dict[str, float]:
    """Return milliseconds by stage of a ``Server-Timing``; entries without a duration are left out."""
    return {stage: float(value) for stage, value in _ENTRY.findall(text)}
