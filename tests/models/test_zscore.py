from __future__ import annotations

import numpy as np
import pytest
import torch

from medad_serve.models.zscore import Moments, ZScore


def _taken(values: np.ndarray) -> ZScore:
    moments, scale = Moments(), ZScore(values.shape[1])
    moments.add(torch.from_numpy(values))
    scale.take(moments)
    return scale


def test_values_are_told_in_deviations_from_the_mean_of_normals() -> None:
    values = np.random.default_rng(0).normal([5.0, -2.0], [0.5, 3.0], (200, 2))
    scale = _taken(values)
    found = scale(torch.from_numpy(values)).numpy()
    expected = (values - values.mean(axis=0)) / values.std(axis=0)
    assert np.allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_one_kind_is_told_as_among_all() -> None:
    values = np.random.default_rng(0).normal([5.0, -2.0], [0.5, 3.0], (200, 2))
    scale, maps = _taken(values), torch.rand(3, 2, 4, 5)
    for index in range(2):
        assert torch.allclose(
            scale.one(index, maps[:, index : index + 1]), scale(maps)[:, index : index + 1], atol=1e-5
        )
    assert scale.one(0, maps[:, :1].bfloat16()).dtype == torch.float32


def test_what_hardly_differs_between_normals_does_not_turn_rounding_into_deviations() -> None:
    """Of collapsed codes: a likelihood of 4.93 that moves by 1e-4 of it, of which float32 rounds 1e-6."""
    values = np.random.default_rng(0).normal(4.93, 4.93e-4, (100, 1)).astype(np.float32)
    scale = _taken(values)
    assert scale.std.item() == pytest.approx(4.93e-2, rel=1e-3)
    rounded = values * (1 + 1e-6)
    moved = (scale(torch.from_numpy(rounded)) - scale(torch.from_numpy(values))).abs().max()
    assert moved <= 1.2e-4


def test_values_that_are_all_zero_stay_so() -> None:
    scale = _taken(np.zeros((10, 1)))
    assert scale(torch.zeros(3, 1)).tolist() == [[0.0]] * 3
