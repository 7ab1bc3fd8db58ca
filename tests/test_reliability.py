from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss

from medad_serve.metrics import Resamples
from medad_serve.reliability import bins_of, calibration_figures, is_probability


def _data(n: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    probability = rng.beta(0.6, 0.6, n)
    labels = (rng.random(n) < probability**2).astype(np.int64)  # surer than it should be
    return probability, labels, [f"p{i // 2}" for i in range(n)]


def _plain_ece(probability: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    total = 0.0
    for low in np.arange(bins) / bins:
        inside = (probability >= low) & (probability < low + 1 / bins)
        if inside.any():
            total += inside.mean() * abs(probability[inside].mean() - labels[inside].mean())
    return total


def test_calibration_error_and_brier_are_those_of_their_formulas() -> None:
    probability, labels, patients = _data()
    found = calibration_figures(probability, labels, patients, resamples=50, seed=1)
    assert found["ece"]["value"] == pytest.approx(_plain_ece(probability, labels), abs=1e-6)
    assert found["brier"]["value"] == pytest.approx(brier_score_loss(labels, probability))
    assert found["ece"]["value"] > 0.1


def test_intervals_are_those_of_a_plain_loop() -> None:
    probability, labels, patients = _data(120)
    found = calibration_figures(probability, labels, patients, resamples=40, seed=1)
    weights = np.concatenate(list(Resamples(labels, patients, 40, 1)), axis=1).astype(int)
    drawn = [np.repeat(np.arange(120), w) for w in weights.T]
    for name, figure in (("ece", _plain_ece), ("brier", lambda p, y: brier_score_loss(y, p))):
        expected = np.quantile([figure(probability[d], labels[d]) for d in drawn], [0.025, 0.975])
        assert [found[name]["low"], found[name]["high"]] == pytest.approx(expected, abs=1e-6), name


def test_bins_hold_every_item_once() -> None:
    probability = np.array([0.0, 0.01, 0.5, 0.51, 1.0])
    found = bins_of(probability, np.array([0, 1, 0, 1, 1]))
    assert found.count.tolist() == [2, 2, 1]
    assert found.mean == pytest.approx([0.005, 0.505, 1.0])
    assert found.share == pytest.approx([0.5, 0.5, 1.0])


def test_only_values_from_0_to_1_are_probabilities() -> None:
    assert is_probability(np.array([0.0, 1.0]))
    assert not is_probability(np.array([0.2, 1.1]))
