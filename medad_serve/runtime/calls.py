"""One call behind which every runtime stands, and how many items go into it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
Outputs = dict[str, NDArray[Any]]
MAX_BATCH = 32
"""Largest batch in one call: bounds memory where a series of hundreds of slices comes at once."""
MAX_VALUES = 2**22
"""Most input values in one call, though always one item: two volumes of 128^3, 16 slices of 512^2."""


class Runtime(Protocol):
    """Runs one exported (or eager) model."""

    def run(self, batch: FloatArray, names: Sequence[str]) -> Outputs:
        """Map float32 ``(N, C, *S)`` to the outputs asked for."""
        ...


@dataclass(frozen=True)
class Selection:
    """Some rows of prepared data, read when they are needed: volumes of a whole data set do not fit into memory."""

    tensor: FloatArray
    rows: NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, ...]:
        """``(rows, C, *S)``."""
        return (len(self.rows), *self.tensor.shape[1:])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> FloatArray:
        return np.asarray(self.tensor[self.rows[part]], np.float32)


def fitting_batch(shape: Sequence[int]) -> int:
    """Return how many items of ``(C, *S)`` go into one call."""
    return max(1, min(MAX_BATCH, MAX_VALUES // math.prod(shape)))


def batches(
    runtime: Runtime, tensor: FloatArray | Selection, names: Sequence[str], batch: int | None = None
) -> Iterator[tuple[slice, Outputs]]:
    """Run any number of items, a call's worth at a time; yield which they were and their outputs."""
    size = batch or fitting_batch(tensor.shape[1:])
    for start in range(0, len(tensor), size):
        rows = slice(start, min(start + size, len(tensor)))
        yield rows, runtime.run(np.ascontiguousarray(tensor[rows]), names)


def run_batched(
    runtime: Runtime, tensor: FloatArray | Selection, names: Sequence[str], batch: int | None = None
) -> Outputs:
    """Run any number of items and keep every output."""
    return joined([outputs for _, outputs in batches(runtime, tensor, names, batch)])


def joined(parts: Sequence[Outputs]) -> Outputs:
    """Put the outputs of several calls, in their order, together."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


MIXED = (8, 4, 2, 1)
"""Sizes of the calls that sources share, where they may, and of those of a runtime whose graphs have a fixed one."""
_WORTH = 0.85
_MOST_S = 0.03
_TURNS = 5
"""In turns, and the fastest of each: a busy machine must not decide for as long as the process lives."""


def may_mix(runtime: Runtime, shape: Sequence[int], values: tuple[float, float], names: Sequence[str]) -> bool:
    """Whether several sources may share a call: their rows then come out bit for bit as alone, and sooner.

    Tried on random items of ``(C, *S)`` within ``values``: kernels choose their order of summation by the shape of
    the batch, so that this depends on model, runtime and machine. On one core of a processor, calls of 8 took
    half as long an item with the autoencoders of 64x64, whose sums do not move, and no less with everything that
    takes 10 ms or more, which is therefore not tried.
    """
    most = min(MIXED[0], fitting_batch(shape))
    tensor = np.random.default_rng(0).uniform(*values, (most, *shape)).astype(np.float32)
    runtime.run(tensor[:1], names)  # the first call prepares
    if most == 1 or min(_seconds(lambda: runtime.run(tensor[:1], names)) for _ in range(3)) > _MOST_S:
        return False
    alone = run_batched(runtime, tensor, names, 1)
    for size in [size for size in MIXED if 1 < size <= most]:
        found = runtime.run(tensor[:size], names)
        if not all(np.array_equal(found[name], alone[name][:size]) for name in names):
            return False
    together, one_by_one = zip(
        *(
            (_seconds(lambda: runtime.run(tensor, names)), _seconds(lambda: run_batched(runtime, tensor, names, 1)))
            for _ in range(_TURNS)
        ),
        strict=True,
    )
    return bool(min(together) < _WORTH * min(one_by_one))


def mixed_batches(
    runtime: Runtime, tensor: FloatArray, names: Sequence[str], batch: int | None = None
) -> Iterator[tuple[slice, Outputs]]:
    """Run items of several sources in the sizes that :func:`may_mix` tried; yield as :func:`batches` does."""
    for rows in spans(len(tensor), batch or fitting_batch(tensor.shape[1:])):
        yield rows, runtime.run(np.ascontiguousarray(tensor[rows]), names)


def spans(items: int, most: int = MIXED[0]) -> Iterator[slice]:
    """Yield parts of :data:`MIXED` sizes, ``most`` at most, that make up a number of items."""
    start = 0
    while start < items:
        size = next(size for size in MIXED if size <= min(items - start, most))
        yield slice(start, start + size)
        start += size


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
