from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from medad_serve.calibration import HeldOut
from medad_serve.metrics import auprc, auroc, sensitivity_at, specificity_at, summarise, with_interval


def _data(n: int = 80, seed: int = 0, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    return (rng.normal(labels, 1) * scale).round(2), labels


@pytest.mark.parametrize("seed", range(5))
def test_areas_equal_sklearn_ties_included(seed: int) -> None:
    scores, labels = _data(seed=seed)
    assert auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)
    assert auprc(scores, labels) == pytest.approx(average_precision_score(labels, scores), abs=1e-6)


def test_areas_hold_for_scores_that_float32_cannot_tell_apart() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1])
    scores = 1e6 + np.array([1, 2, 4, 3, 5, 6]) * 1e-6
    assert auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores))


def test_one_class_has_no_area() -> None:
    assert np.isnan(auroc(np.arange(3.0), np.zeros(3, np.int64)))
    data = HeldOut(np.arange(3.0), np.zeros(3, np.int64), ("a", "b", "c"))
    assert with_interval(auroc, data)["value"] is None
    assert summarise(data, 1.5)["specificity"]["value"] == pytest.approx(2 / 3)


def test_cutoff_itself_counts_as_anomalous() -> None:
    scores, labels = np.array([1.0, 2.0, 2.0, 3.0]), np.array([0, 0, 1, 1])
    assert sensitivity_at(2.0)(scores, labels) == 1
    assert specificity_at(2.0)(scores, labels) == 0.5


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        labels = np.repeat([0, 1], 30)
        data = HeldOut(rng.normal(labels, 1), labels, tuple(map(str, range(60))))
        found = with_interval(auroc, data, resamples=200, seed=seed)
        covered += found["low"] <= 0.7602 <= found["high"]  # Phi(1/sqrt 2)
    assert covered >= 50


def test_interval_is_bootstrapped_by_patient() -> None:
    scores, labels = _data(40)
    alone = HeldOut(scores, labels, tuple(map(str, range(40))))
    repeated = HeldOut(np.repeat(scores, 10), np.repeat(labels, 10), tuple(str(i // 10) for i in range(400)))
    a, b = with_interval(auroc, alone), with_interval(auroc, repeated)
    assert b["high"] - b["low"] == pytest.approx(a["high"] - a["low"], rel=0.2)
