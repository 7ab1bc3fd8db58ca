"""Does the exported model score as the trained one does, on real inputs?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medad_serve.errors import MedadError
from medad_serve.runtime import FloatArray, Runtime, run_batched
from medad_serve.spec import Parity

BATCHES = (1, 8)
RELATIVE_TOLERANCE = 1e-4
"""Of float32 kernels that add in another order; measured differences are recorded beside it."""


def relative_difference(found: NDArray[np.floating], expected: NDArray[np.floating]) -> float:
    """Return the largest difference relative to the largest magnitude of the same item.

    Per item and not per element: a squared error of nearly zero has no meaningful relative error of its own.
    """
    items = len(expected)
    difference = np.abs(found.astype(np.float64) - expected).reshape(items, -1).max(axis=1)
    magnitude = np.abs(expected.astype(np.float64)).reshape(items, -1).max(axis=1)
    return float(np.max(difference / np.maximum(magnitude, np.finfo(np.float32).tiny)))


def check_parity(
    name: str,
    runtime: Runtime,
    trained: Runtime,
    inputs: FloatArray,
    outputs: Sequence[str],
    cutoffs: Sequence[float],
    tolerance: float = RELATIVE_TOLERANCE,
) -> Parity:
    """Compare every output at batch 1 and 8, and every decision at every cutoff.

    Raises MedadError where an output differs beyond ``tolerance`` or a decision flips though its score lies
    outside the tolerance band around the cutoff.
    """
    expected = run_batched(trained, inputs, outputs)
    absolute, relative, flips = 0.0, 0.0, 0
    for batch in BATCHES:
        found = run_batched(runtime, inputs, outputs, batch)
        for output in outputs:
            absolute = max(absolute, float(np.abs(found[output].astype(np.float64) - expected[output]).max()))
            difference = relative_difference(found[output], expected[output])
            relative = max(relative, difference)
            if not difference <= tolerance:
                raise MedadError(
                    f"parity: {name} output {output} at batch {batch} differs by {difference:.2e} relative, "
                    f"more than {tolerance:.0e}",
                    "Nothing was written; report the model and the torch version",
                )
        flips += sum(_flips(found["score"], expected["score"], cutoff, tolerance) for cutoff in cutoffs)
    if flips:
        raise MedadError(f"parity: {flips} decisions of {name} flip", "Nothing was written; report the model")
    return Parity(
        runtime=name,
        batches=BATCHES,
        inputs=len(inputs),
        relative_tolerance=tolerance,
        max_absolute_difference=absolute,
        max_relative_difference=relative,
        decisions=len(inputs) * len(cutoffs) * len(BATCHES),
        flips=flips,
    )


def _flips(found: NDArray[np.floating], expected: NDArray[np.floating], cutoff: float, tolerance: float) -> int:
    """Count decisions that differ outside the tolerance band around the cutoff."""
    differs = (found.astype(np.float64) >= cutoff) != (expected.astype(np.float64) >= cutoff)
    outside = np.abs(expected.astype(np.float64) - cutoff) > tolerance * abs(cutoff)
    return int((differs & outside).sum())
