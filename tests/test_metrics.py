from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    precision_score,
    recall_score,
    roc_auc_score,
)

from medad_serve.calibration import HeldOut
from medad_serve.metrics import (
    Ranking,
    Resamples,
    auprc,
    auroc,
    classes_by_patient,
    classes_of,
    decision_figures,
    separations,
    summarise,
)


def _data(n: int = 80, seed: int = 0, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    return (rng.normal(labels, 1) * scale).round(1), labels


def _held_out(n: int = 120, per_patient: int = 3, seed: int = 0) -> HeldOut:
    """Diseased patients have normal items too, as a series has slices without a lesion."""
    rng = np.random.default_rng(seed)
    patients = np.repeat(np.arange(n // per_patient), per_patient)
    labels = np.where(patients % 2 == 0, 0, rng.integers(0, 2, n))
    return HeldOut(rng.normal(labels, 1).round(1), labels, tuple(f"p{i}" for i in patients))


@pytest.mark.parametrize("seed", range(5))
def test_areas_equal_sklearn_ties_included(seed: int) -> None:
    scores, labels = _data(seed=seed)
    assert auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)
    assert auprc(scores, labels) == pytest.approx(average_precision_score(labels, scores), abs=1e-6)


def test_areas_hold_for_scores_that_float32_cannot_tell_apart() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1])
    scores = 1e6 + np.array([1, 2, 4, 3, 5, 6]) * 1e-6
    assert auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores))


@pytest.mark.parametrize("seed", range(3))
def test_weighted_areas_are_those_of_sklearn_with_sample_weights(seed: int) -> None:
    scores, labels = _data(seed=seed)
    weights = np.random.default_rng(seed).integers(0, 4, (len(scores), 7)).astype(np.float64)
    found = Ranking(scores, labels).areas(weights)
    for column in range(7):
        w = weights[:, column]
        assert found["auroc"][column] == pytest.approx(roc_auc_score(labels, scores, sample_weight=w))
        assert found["auprc"][column] == pytest.approx(average_precision_score(labels, scores, sample_weight=w))


def test_each_resample_draws_as_many_patients_of_each_class_as_there_are() -> None:
    data = _held_out()
    weights = np.concatenate(list(Resamples(data.labels, data.patients, count=50)), axis=1)
    assert weights.shape == (120, 50)
    names = np.array(data.patients)
    for name in set(data.patients):  # a patient comes whole or not at all
        assert (np.ptp(weights[names == name], axis=0) == 0).all()
    diseased = np.isin(names, names[data.labels == 1])
    for group in (diseased, ~diseased):
        np.testing.assert_array_equal(weights[group].sum(axis=0), group.sum())
    # Each patient is drawn once on average, and left out of 37 % (1/e) of the resamples.
    assert np.mean(weights == 0) == pytest.approx(np.exp(-1), abs=0.05)


def test_the_vectorised_bootstrap_equals_the_plain_loop_over_the_same_resamples() -> None:
    data = _held_out()
    cutoff = 0.4
    found = summarise(data, cutoff, resamples=60, seed=3)
    loop: dict[str, list[float]] = {name: [] for name in found if name not in ("normal", "abnormal", "patients")}
    weights = np.concatenate(list(Resamples(data.labels, data.patients, 60, 3)), axis=1).astype(int)
    for column in weights.T:
        picked = np.repeat(np.arange(len(column)), column)
        scores, labels = data.scores[picked], data.labels[picked]
        called = scores >= cutoff
        loop["auroc"].append(roc_auc_score(labels, scores))
        loop["auprc"].append(average_precision_score(labels, scores))
        loop["sensitivity"].append(recall_score(labels, called))
        loop["recall"].append(recall_score(labels, called))
        loop["specificity"].append(recall_score(labels, called, pos_label=0))
        loop["precision"].append(precision_score(labels, called))
        loop["f1"].append(f1_score(labels, called))
        loop["accuracy"].append(accuracy_score(labels, called))
    for name, values in loop.items():
        low, high = np.quantile(values, [0.025, 0.975])
        assert found[name]["low"] == pytest.approx(low), name
        assert found[name]["high"] == pytest.approx(high), name


@pytest.mark.parametrize("seed", range(3))
def test_decisions_are_measured_as_sklearn_does(seed: int) -> None:
    scores, labels = _data(seed=seed)
    found = summarise(HeldOut(scores, labels, tuple(map(str, range(80)))), 0.5, resamples=10)
    called = scores >= 0.5
    expected = {
        "sensitivity": recall_score(labels, called),
        "recall": recall_score(labels, called),
        "specificity": recall_score(labels, called, pos_label=0),
        "precision": precision_score(labels, called),
        "f1": f1_score(labels, called),
        "accuracy": accuracy_score(labels, called),
    }
    assert {name: found[name]["value"] for name in expected} == pytest.approx(expected)


def test_cutoff_itself_counts_as_anomalous() -> None:
    data = HeldOut(np.array([1.0, 2.0, 2.0, 3.0]), np.array([0, 0, 1, 1]), ("a", "b", "c", "d"))
    found = summarise(data, 2.0, resamples=5)
    assert (found["sensitivity"]["value"], found["specificity"]["value"]) == (1.0, 0.5)


def test_what_is_not_defined_is_none_and_never_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        normals = HeldOut(np.arange(3.0), np.zeros(3, np.int64), ("a", "b", "c"))
        found = summarise(normals, 1.5, {}, resamples=20)
        assert found["specificity"]["value"] == pytest.approx(2 / 3)
        assert found["accuracy"]["value"] == pytest.approx(2 / 3)
        for name in ("auroc", "auprc", "sensitivity", "recall", "precision", "f1"):
            assert found[name] == {"value": None, "low": None, "high": None}
        sick = HeldOut(np.arange(3.0), np.ones(3, np.int64), ("a", "b", "c"))
        found = summarise(sick, 1.5, {}, resamples=20)
        assert found["sensitivity"]["value"] == pytest.approx(1 / 3)
        assert found["specificity"]["value"] is found["f1"]["value"] is found["auroc"]["value"] is None
        none_called = summarise(HeldOut(np.arange(4.0), np.array([0, 0, 1, 1]), tuple("abcd")), 9.0, resamples=20)
        assert none_called["precision"]["value"] is None
        assert none_called["f1"]["value"] == 0


def test_counts_that_make_no_figure_are_nan() -> None:
    one, none = np.ones(1), np.zeros(1)
    assert np.isnan(decision_figures(none, none, one, none)["precision"]).all()
    assert decision_figures(one, none, one, none)["f1"] == 1


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        labels = np.repeat([0, 1], 30)
        scores = {"score": rng.normal(labels, 1)}
        found = separations(scores, labels, tuple(map(str, range(60))), resamples=300, seed=seed)["score"]
        covered += found["low"] <= 0.7602 <= found["high"]  # Phi(1/sqrt 2)
    assert covered >= 0.9 * 200


def test_interval_is_bootstrapped_by_patient() -> None:
    scores, labels = _data(40)
    alone = summarise(HeldOut(scores, labels, tuple(map(str, range(40)))), None)["auroc"]
    tenfold = HeldOut(np.repeat(scores, 10), np.repeat(labels, 10), tuple(str(i // 10) for i in range(400)))
    repeated = summarise(tenfold, None)["auroc"]
    assert repeated["high"] - repeated["low"] == pytest.approx(alone["high"] - alone["low"], rel=0.2)


def test_each_class_is_measured_against_all_normals_counted_by_hand() -> None:
    #            normal  normal  cnv   cnv   dme   named by nobody
    scores = np.array([0.1, 0.6, 0.7, 0.2, 0.8, 0.05])
    labels = np.array([0, 0, 1, 1, 1, 1])
    patients = ("a", "b", "c", "c", "c", "d")
    classes = classes_of(labels, ["NORMAL", "NORMAL", "CNV", "CNV", "DME", ""])
    found = summarise(HeldOut(scores, labels, patients), 0.5, classes, resamples=50)["classes"]
    assert set(found) == {"CNV", "DME"}
    cnv = found["CNV"]
    assert (cnv["normal"], cnv["abnormal"], cnv["patients"]) == (2, 2, 3)
    assert cnv["auroc"]["value"] == 3 / 4  # 0.7 beats both normals, 0.2 one of them
    assert cnv["sensitivity"]["value"] == 1 / 2
    assert cnv["specificity"]["value"] == 1 / 2
    assert cnv["precision"]["value"] == 1 / 2
    assert cnv["accuracy"]["value"] == 2 / 4
    assert found["DME"]["auroc"]["value"] == 1
    assert found["DME"]["f1"]["value"] == pytest.approx(2 / 3)
    of_patients = classes_by_patient(classes, patients, ("a", "b", "c", "d"))
    assert {name: mask.tolist() for name, mask in of_patients.items()} == {
        "CNV": [False, False, True, False],
        "DME": [False, False, True, False],
    }


def test_several_scores_of_the_same_items_stand_beside_each_other() -> None:
    scores, labels = _data()
    patients = tuple(map(str, range(80)))
    found = separations({"good": scores, "inverted": -scores}, labels, patients, resamples=30)
    assert found["good"]["value"] == pytest.approx(roc_auc_score(labels, scores))
    assert found["good"]["value"] + found["inverted"]["value"] == pytest.approx(1)
    assert found["good"]["low"] + found["inverted"]["high"] == pytest.approx(1)
    assert separations({}, labels, patients) == {}
