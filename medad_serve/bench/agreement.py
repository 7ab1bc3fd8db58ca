"""Does an engine answer as the reference does?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medad_serve.bench.results import Agreement
from medad_serve.calibration import Decider
from medad_serve.export.parity import relative_difference
from medad_serve.runtime import Outputs
from medad_serve.spec import Manifest

ANY = ("onnx/float32", "torchscript/float32")
"""Calibrations by which the reference decides, and every engine that has none of its own."""


def compare(found: Outputs, expected: Outputs, names: Sequence[str], cutoff: float, own_cutoff: float) -> Agreement:
    """Compare every output of the same items, and the decisions, each by the cutoff of its own calibration."""
    codes = [name for name in names if np.issubdtype(expected[name].dtype, np.integer)]
    differ = [float(np.mean(found[name] != expected[name])) for name in codes]
    decisions = found["score"] >= own_cutoff, expected["score"] >= cutoff
    return Agreement(
        items=len(expected["score"]),
        relative_difference=max(relative_difference(found[n], expected[n]) for n in names if n not in codes),
        codes_differ=max(differ) if differ else None,
        flips=int(np.sum(decisions[0] != decisions[1])),
    )


def default_cutoff(manifest: Manifest, variant: str | None = None) -> float:
    """Return the cutoff of the default policy by a variant's own calibration, else by one in float32."""
    known = manifest.calibrations
    key = next((key for key in (variant, *ANY) if key in known), next(iter(known)))
    return Decider(known[str(key)].item).cutoff(manifest.default_policy)
