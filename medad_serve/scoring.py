"""Prepared items through the graph: several in one call where that changes nothing, none past its time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from medad_serve.deadline import Deadline, Pace, late
from medad_serve.errors import InputError
from medad_serve.runtime import FloatArray, Outputs, Runtime, batches, fitting_batch, joined, may_mix, mixed_batches


@dataclass(frozen=True)
class Rows:
    """What the graph is to say of one item."""

    tensor: FloatArray
    """``(N, C, *S)``: its slices, volumes or regions."""
    heatmap: bool
    spent_s: float
    """What it has taken until here; infinite where no neighbour took any of the batch's time."""


@dataclass(frozen=True)
class Found:
    """What the graph says of one item: outputs of each row, and the heatmap of the highest score."""

    outputs: Outputs
    heatmap: FloatArray | None = None


class Scorer:
    """Runs the graph of one artifact over the items of a batch."""

    def __init__(
        self,
        runtime: Runtime,
        shape: Sequence[int],
        values: tuple[float, float],
        details: Sequence[str],
        *,
        batch: int | None = None,
    ) -> None:
        """``shape`` and ``values`` are those of one prepared row, ``details`` the outputs wanted beside the score.

        ``batch`` is what a call takes at most, where less than memory allows was found to be faster.
        """
        self.runtime = runtime
        self.shape = tuple(shape)
        self.most = min(batch or fitting_batch(shape), fitting_batch(shape))
        self.values = values
        self.names = ["score", *details]
        self.pace = Pace()
        self._may_mix: bool | None = None

    @property
    def mixes(self) -> bool:
        """Whether several items share calls of the graph, tried at first use: see :func:`may_mix`."""
        if self._may_mix is None:
            self._may_mix = may_mix(self.runtime, self.shape, self.values, self.names)
        return self._may_mix

    def score(self, items: Sequence[Rows], deadline: Deadline, *, has_begun: bool) -> list[Found | InputError]:
        """Run the graph over items, together where that changes nothing; heatmaps for those alone who ask.

        ``has_begun`` says that it ran for this batch before: then, and for all but the first of the items, what such
        work took lately decides whether a first call is made; else it is made, or an old estimate could never be
        mended. What the time ends for gets the error of :func:`late`.
        """
        mixes = sum(len(item.tensor) for item in items) > 1 and self.mixes
        shared = [index for index, item in enumerate(items) if mixes and not item.heatmap]
        found: dict[int, Found | InputError] = {}
        for index in (i for i in range(len(items)) if i not in shared):
            found[index] = self._one(items[index], mixes, deadline, has_begun or bool(found))
        if shared:
            together = self._together([items[i] for i in shared], deadline, has_begun or bool(found))
            found |= zip(shared, together, strict=True)
        return [found[index] for index in range(len(items))]

    def _one(self, item: Rows, mixes: bool, deadline: Deadline, has_begun: bool) -> Found | InputError:
        """Keep the heatmap of the highest score alone: those of a series would fill the memory."""
        start = time.perf_counter()
        names = [*self.names, "heatmap"] if item.heatmap else self.names
        parts: list[Outputs] = []
        heatmap, highest, done = None, -np.inf, 0
        # alone a series is always cut in the same way, and its rows come out as they do without neighbours
        for rows, outputs in self._calls(item.tensor, names, mixes, deadline, has_begun):
            done = rows.stop
            if item.heatmap:
                maps = outputs.pop("heatmap")
                top = int(np.argmax(outputs["score"]))
                if heatmap is None or outputs["score"][top] > highest:
                    heatmap, highest = maps[top, 0].copy(), outputs["score"][top]
            parts.append(outputs)
        if done < len(item.tensor):
            return _late(item, done, time.perf_counter() - start, deadline)
        return Found(joined(parts), heatmap)

    def _together(self, items: Sequence[Rows], deadline: Deadline, has_begun: bool) -> Iterator[Found | InputError]:
        start = time.perf_counter()
        tensor = np.concatenate([item.tensor for item in items])
        parts = list(self._calls(tensor, self.names, True, deadline, has_begun))
        seconds, done = time.perf_counter() - start, parts[-1][0].stop if parts else 0
        outputs = joined([part for _, part in parts]) if parts else {}
        first = 0
        for item in items:
            rows = slice(first, first + len(item.tensor))
            first = rows.stop
            if rows.stop <= done:
                yield Found({name: values[rows] for name, values in outputs.items()})
            else:
                yield _late(item, done, seconds, deadline)

    def _calls(
        self, tensor: FloatArray, names: Sequence[str], mixes: bool, deadline: Deadline, has_begun: bool
    ) -> Iterator[tuple[slice, Outputs]]:
        """Run the graph a call's worth at a time, as long as the next call is likely to end in time."""
        calls = (mixed_batches if mixes else batches)(self.runtime, tensor, names, self.most)
        expected = self.pace.expects(min(len(tensor), self.most)) if has_begun else 0.0
        while deadline.left() > expected:
            start = time.perf_counter()
            call = next(calls, None)
            if call is None:
                return
            took, size = time.perf_counter() - start, call[0].stop - call[0].start
            self.pace.took(took, size)
            expected = took / size * min(size, len(tensor) - call[0].stop)
            yield call


def _late(item: Rows, done: int, seconds: float, deadline: Deadline) -> InputError:
    """Tell an item that would be too slow alone from one that came too late; ``done`` rows took ``seconds``."""
    return late(item.spent_s + (seconds * len(item.tensor) / done if done else 0.0), deadline)
