"""Does an engine answer as the reference does?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medad_serve.bench.results import Agreement
from medad_serve.calibration import Decider
from medad_serve.export.parity import relative_difference
from medad_serve.runtime import Outputs
from medad_serve.spec import Manifest, OutputSpec

ANY = ("onnx/float32", "torchscript/float32")
"""Calibrations by which the reference decides, and every engine that has none of its own."""


def compare(
    found: Outputs, expected: Outputs, outputs: Sequence[OutputSpec], cutoff: float, own_cutoff: float
) -> Agreement:
    """Compare every output of the same items, and the decisions, each by the cutoff of its own calibration."""
    codes = [each.name for each in outputs if np.issubdtype(expected[each.name].dtype, np.integer)]
    differ = [float(np.mean(found[name] != expected[name])) for name in codes]
    decisions = found["score"] >= own_cutoff, expected["score"] >= cutoff
    return Agreement(
        items=len(expected["score"]),
        relative_difference=max(
            relative_difference(found[each.name], expected[each.name], float(each.deviations))
            for each in outputs
            if each.name not in codes
        ),
        codes_differ=max(differ) if differ else None,
        flips=int(np.sum(decisions[0] != decisions[1])),
    )


def default_cutoff(manifest: Manifest, variant: str | None = None) -> float:
    """Return the cutoff of the default policy by a variant's own calibration, else by one in float32."""
    known = manifest.calibrations
    key = next((key for key in (variant, *ANY) if key in known), next(iter(known)))
    return Decider(known[str(key)].item).cutoff(manifest.default_policy)
