"""Does this machine compute the scores that the calibrating one did? Asked of made-up items whose scores are known.

Reduced precisions hang on what a processor has: without VNNI instructions 8-bit products saturate, silently. Cutoffs
made elsewhere then decide wrongly, so that a worker which cannot reproduce the scores does not start.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from medad_serve.errors import MedadError
from medad_serve.runtime.calls import FloatArray, Runtime, run_batched
from medad_serve.spec import FLOAT32

ITEMS = 2
BLOCKS = 8
"""Along each axis of an item: of one value each, as organs are and noise is not."""
TOLERANCE = {True: 1e-2, False: 1e-1}
"""Relative to the larger score, in float32 and below: sums in another order stay far within, saturation does not."""


def probe_items(shape: Sequence[int], values: tuple[float, float]) -> FloatArray:
    """Return made-up items ``(2, C, *S)`` within ``values``, the same on every machine."""
    channels, *size = shape
    coarse = np.random.default_rng(0).uniform(*values, (ITEMS, channels, *[BLOCKS] * len(size)))
    for axis, side in enumerate(size, 2):
        coarse = np.repeat(coarse, math.ceil(side / BLOCKS), axis).take(range(side), axis)
    return np.ascontiguousarray(coarse, np.float32)


def probe(runtime: Runtime, shape: Sequence[int], values: tuple[float, float]) -> tuple[float, ...]:
    """Return the scores of the made-up items."""
    found = run_batched(runtime, probe_items(shape, values), ["score"], 1)["score"]
    return tuple(float(score) for score in found)


def check_reproduces(found: Sequence[float], expected: Sequence[float], variant: str) -> None:
    """Raise MedadError where scores of the made-up items are not those of the machine that exported the variant."""
    difference = float(np.max(np.abs(np.subtract(found, expected)))) / (max(map(abs, expected)) or 1.0)
    if not difference <= TOLERANCE[variant.endswith(f"/{FLOAT32}")]:
        raise MedadError(
            f"{variant} gives other scores here than where it was calibrated (by {difference:.1%})",
            "Export the model on a machine of this kind, or serve it in float32",
        )
