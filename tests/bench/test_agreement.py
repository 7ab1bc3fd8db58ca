"""How far answers lie apart, and which decisions differ."""

from __future__ import annotations

import numpy as np
import pytest

from medad_serve.bench.agreement import compare
from medad_serve.spec import OutputSpec

OUTPUTS = tuple(
    OutputSpec(name=name, shape=shape) for name, shape in (("score", ()), ("heatmap", (1, 2, 2)), ("codes", ()))
)


def _outputs(score: list[float], codes: list[int]) -> dict[str, np.ndarray]:
    return {
        "score": np.array(score, np.float32),
        "heatmap": np.tile(np.array(score, np.float32)[:, None, None, None], (1, 1, 2, 2)),
        "codes": np.array(codes, np.int64),
    }


def test_differences_codes_and_flips_are_counted() -> None:
    expected, found = _outputs([1.0, 2.0, 3.0], [5, 6, 7]), _outputs([1.0, 2.02, 3.0], [5, 6, 8])
    compared = compare(found, expected, OUTPUTS, cutoff=2.01, own_cutoff=2.01)
    assert compared.items == 3
    assert compared.relative_difference == pytest.approx(0.01, rel=1e-3)
    assert compared.codes_differ == pytest.approx(1 / 3)
    assert compared.flips == 1
    assert compare(found, expected, OUTPUTS, cutoff=2.01, own_cutoff=2.03).flips == 0  # decided by its own calibration


def test_z_scores_are_held_to_one_deviation_at_least() -> None:
    expected, found = _outputs([0.1, 0.2, -0.1], [5, 6, 7]), _outputs([0.1, 0.2, -0.098], [5, 6, 7])
    own = compare(found, expected, OUTPUTS, cutoff=3, own_cutoff=3)
    assert own.relative_difference == pytest.approx(0.02, rel=1e-3)
    deviations = [output.model_copy(update={"deviations": True}) for output in OUTPUTS]
    held = compare(found, expected, deviations, cutoff=3, own_cutoff=3)
    assert held.relative_difference == pytest.approx(0.002, rel=1e-3)
