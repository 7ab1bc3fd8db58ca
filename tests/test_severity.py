from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import mean_absolute_error

from medad_serve.metrics import Resamples
from medad_serve.severity import contrast, mean_error, rank_correlation, weighted_ranks, weighted_spearman


def _pairs(n: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    true = rng.uniform(0, 10, n).round(0)
    return (true + rng.normal(0, 3, n)).round(1), true, [f"p{i // 3}" for i in range(n)]


def _drawn(patients: list[str], count: int, seed: int) -> list[np.ndarray]:
    weights = np.concatenate(list(Resamples(np.ones(len(patients), np.int64), patients, count, seed)), axis=1)
    return [np.repeat(np.arange(len(patients)), w.astype(int)) for w in weights.T]


def test_weighted_correlation_is_scipys_of_repeated_values() -> None:
    a, b, _ = _pairs()
    weights = np.random.default_rng(1).integers(0, 4, (60, 9)).astype(np.float64)
    found = weighted_spearman(a, b, weights)
    for column in range(9):
        picked = np.repeat(np.arange(60), weights[:, column].astype(int))
        assert found[column] == pytest.approx(spearmanr(a[picked], b[picked]).statistic)


def test_ties_share_their_mean_rank() -> None:
    values, weights = np.array([5.0, 1.0, 5.0, 7.0]), np.array([[1.0], [2.0], [1.0], [0.0]])
    assert weighted_ranks(values, weights)[:3, 0].tolist() == [3.5, 1.5, 3.5]


def test_figures_and_intervals_are_those_of_a_plain_loop() -> None:
    a, b, patients = _pairs()
    rho = rank_correlation(a, b, patients, resamples=50, seed=2)
    error = mean_error(a, b, patients, resamples=50, seed=2)
    assert rho["value"] == pytest.approx(spearmanr(a, b).statistic)
    assert error["value"] == pytest.approx(mean_absolute_error(b, a))
    drawn = _drawn(patients, 50, 2)
    for cell, loop in (
        (rho, [spearmanr(a[p], b[p]).statistic for p in drawn]),
        (error, [mean_absolute_error(b[p], a[p]) for p in drawn]),
    ):
        assert [cell["low"], cell["high"]] == pytest.approx(np.quantile(loop, [0.025, 0.975]))


@pytest.mark.parametrize("values", [[1.0, 2.0], [3.0, 3.0, 3.0, 3.0]])
def test_what_orders_nothing_has_no_correlation(values: list[float]) -> None:
    a = np.array(values)
    assert rank_correlation(a, np.arange(len(a), dtype=float), list(map(str, values)))["value"] is None


def test_contrast_is_the_gap_between_a_defect_and_the_ring_about_it() -> None:
    image = np.full((100, 100), 0.5, np.float32)
    image[:, 60:] = 0.9  # far away: not in the ring
    mask = np.zeros((100, 100), bool)
    mask[20:30, 20:30] = True
    image[mask] = 0.2
    assert contrast(image, mask) == pytest.approx(0.3, abs=1e-6)


def test_a_mask_of_nothing_or_everything_has_no_contrast() -> None:
    image = np.zeros((10, 10), np.float32)
    for mask in (np.zeros((10, 10), bool), np.ones((10, 10), bool)):
        assert np.isnan(contrast(image, mask))
