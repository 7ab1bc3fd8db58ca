"""Does the exported model score as the trained one does, on real inputs?"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medad_serve.errors import MedadError
from medad_serve.export.graph import EagerRuntime
from medad_serve.runtime import FloatArray, Runtime, fitting_batch, run_batched
from medad_serve.spec import Parity

BATCHES = (1, 8)
RELATIVE_TOLERANCE = 1e-4
"""Of float32 kernels that add in another order; measured differences are recorded beside it."""
ROUNDING_MARGIN = 3.0
"""Where the trained model itself rounds by more, an export may differ by that many times as much: both round."""
LARGEST_TOLERANCE = 1e-3
"""Beyond which no rounding excuses an export."""


def relative_difference(found: NDArray[np.floating], expected: NDArray[np.floating], least: float = 0.0) -> float:
    """Return the largest difference relative to the largest magnitude of the same item, ``least`` at least.

    Per item and not per element: a squared error of nearly zero has no meaningful relative error of its own. Nor
    has an item that is nearly zero as a whole: a single value is held against the median item at least, the map of
    a normal scan against a tenth of it.
    """
    items = len(expected)
    difference = np.abs(found.astype(np.float64) - expected).reshape(items, -1).max(axis=1)
    magnitude = np.abs(expected.astype(np.float64)).reshape(items, -1).max(axis=1)
    magnitude = np.maximum(magnitude, max(least, np.median(magnitude) * (1.0 if expected.ndim == 1 else 0.1)))
    return float(np.max(difference / np.maximum(magnitude, np.finfo(np.float32).tiny)))


def check_parity(
    name: str,
    runtime: Runtime,
    trained: EagerRuntime,
    inputs: FloatArray,
    outputs: Sequence[str],
    cutoffs: Sequence[float],
    tolerance: float = RELATIVE_TOLERANCE,
) -> Parity:
    """Compare every output at batch 1 and 8, and every decision at every cutoff.

    Raises MedadError where an output differs beyond ``tolerance``, a code differs though the two nearest do not
    tie within it, or a decision flips though its score lies outside the tolerance band around the cutoff. What
    else an item with such a tie gives is not compared, but its decisions are.
    """
    expected = run_batched(trained, inputs, outputs)
    codes = [name for name in outputs if np.issubdtype(expected[name].dtype, np.integer)]
    gaps = trained.ties(inputs) if codes else {}
    absolute, relative, flips, ties = 0.0, 0.0, 0, 0
    allowed = dict.fromkeys(outputs, tolerance)
    # what float32 rounds a raw score by is no share of how far the score lies from the mean
    least = {name: 1.0 if name in trained.model.deviations else 0.0 for name in outputs}
    sizes = _batches(inputs.shape[1:])
    for batch in sizes:
        found = run_batched(runtime, inputs, outputs, batch)
        same = np.ones(len(inputs), bool)
        for output in codes:
            differs = found[output] != expected[output]
            ties += int(differs.sum())
            if (differs & ~(gaps[output] <= tolerance)).any():
                raise _refusal(f"{name} output {output} at batch {batch} holds codes that are not the nearest")
            same &= ~differs.reshape(len(inputs), -1).any(axis=1)
        for output in set(outputs) - set(codes) if same.any() else ():
            there, here = found[output][same], expected[output][same]
            absolute = max(absolute, float(np.abs(there.astype(np.float64) - here).max()))
            difference = relative_difference(there, here, least[output])
            relative = max(relative, difference)
            if not difference <= allowed[output]:
                allowed[output] = max(tolerance, _rounding(trained, inputs, output, expected[output], least[output]))
            if not difference <= allowed[output]:
                raise _refusal(
                    f"{name} output {output} at batch {batch} differs by {difference:.2e} relative, "
                    f"more than {allowed[output]:.0e}"
                )
        flips += sum(
            _flips(found["score"], expected["score"], cutoff, allowed["score"] * max(abs(cutoff), least["score"]))
            for cutoff in cutoffs
        )
    if flips:
        raise _refusal(f"{flips} decisions of {name} flip")
    return Parity(
        runtime=name,
        batches=sizes,
        inputs=len(inputs),
        relative_tolerance=max(allowed.values()),
        max_absolute_difference=absolute,
        max_relative_difference=relative,
        ties=ties,
        decisions=len(inputs) * len(cutoffs) * len(sizes),
        flips=flips,
    )


def _rounding(
    trained: EagerRuntime, inputs: FloatArray, output: str, expected: NDArray[np.floating], least: float
) -> float:
    """Return the tolerance that the trained model's own rounding leaves: of its float32 against float64."""
    exact = EagerRuntime(copy.deepcopy(trained.model).double())
    size = fitting_batch(inputs.shape[1:])
    parts = [
        exact.run(inputs[start : start + size].astype(np.float64), [output])[output]
        for start in range(0, len(inputs), size)
    ]
    return min(ROUNDING_MARGIN * relative_difference(expected, np.concatenate(parts), least), LARGEST_TOLERANCE)


def _batches(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the batch sizes to compare at: 1 and 8, or as many as go into one call."""
    return tuple(sorted({min(batch, max(2, fitting_batch(shape))) for batch in BATCHES}))


def _refusal(fault: str) -> MedadError:
    return MedadError(f"parity: {fault}", "Nothing was written; report the model and the torch version")


def _flips(found: NDArray[np.floating], expected: NDArray[np.floating], cutoff: float, band: float) -> int:
    """Count decisions that differ though the score lies further than ``band`` from the cutoff."""
    differs = (found.astype(np.float64) >= cutoff) != (expected.astype(np.float64) >= cutoff)
    outside = np.abs(expected.astype(np.float64) - cutoff) > band
    return int((differs & outside).sum())
