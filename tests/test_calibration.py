from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score, roc_curve

from medad_serve import calibration as cal
from medad_serve.calibration import Decider, HeldOut, calibrate, cutoff_value, p_value, parse_policy, stored_scores
from medad_serve.errors import MedadError

EMPTY = np.array([])
floats = st.floats(0, 1, allow_nan=False, width=32)


def _held_out(normal: np.ndarray, abnormal: np.ndarray = EMPTY) -> HeldOut:
    scores = np.concatenate([normal, abnormal]).astype(np.float64)
    labels = np.array([0] * len(normal) + [1] * len(abnormal))
    return HeldOut(scores, labels, tuple(f"p{i}" for i in range(len(scores))))


def _calibrate(held_out: HeldOut, **more):
    return calibrate(held_out, fingerprint="f", method="held_out", heatmap_scale=1.0, **more)


@given(st.lists(floats, min_size=19, max_size=80), floats, st.sampled_from(["0.95", "0.9", "0.8"]))
def test_anomalous_exactly_when_the_p_value_is_at_most_alpha(normal, score, specificity) -> None:
    scores = np.sort(np.array(normal, np.float64))
    cutoff = cutoff_value(f"specificity={specificity}", scores, EMPTY)
    p = p_value(score, scores, len(scores))
    assert p == (1 + sum(s >= score for s in normal)) / (len(normal) + 1)
    assert (score >= cutoff) == (p <= float(1 - cal.Fraction(specificity)))


def test_cutoff_lies_just_above_the_rank_of_the_formula() -> None:
    normal = np.random.default_rng(0).normal(size=57)
    rank = math.ceil(0.95 * 58)
    cutoff = cutoff_value("specificity=0.95", normal, EMPTY)
    assert cutoff == np.nextafter(np.sort(normal)[rank - 1], np.inf)


def test_p_values_of_fresh_normals_are_valid() -> None:
    rng = np.random.default_rng(1)
    alarms = []
    for _ in range(400):
        normal = rng.normal(size=40)
        cutoff = cutoff_value("specificity=0.9", normal, EMPTY)
        alarms.append(rng.normal() >= cutoff)
    # Binomial: 0.1 + 3 standard errors of 400 draws
    assert np.mean(alarms) <= 0.1 + 3 * math.sqrt(0.09 / 400)


@given(st.integers(10_001, 40_000), st.integers(0, 2**32 - 1))
def test_a_grid_of_many_scores_never_makes_a_p_value_smaller(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=n)
    grid = np.array(stored_scores(normal))
    assert len(grid) == cal.MAX_STORED
    cutoff = cutoff_value("specificity=0.95", normal, EMPTY)
    for score in [*rng.normal(size=5), cutoff, np.nextafter(cutoff, -np.inf), *rng.choice(normal, 3)]:
        exact = (1 + np.sum(normal >= score)) / (n + 1)
        p = p_value(score, grid, n)
        assert exact <= p <= exact + 1.1 / cal.MAX_STORED
        assert (score >= cutoff) == (p <= 0.05)


def test_sensitivity_keeps_the_share_asked_for() -> None:
    abnormal = np.arange(20.0)
    cutoff = cutoff_value("sensitivity=0.95", EMPTY, abnormal)
    assert np.mean(abnormal >= cutoff) == 0.95


def test_youden_is_the_best_point_of_sklearns_curve() -> None:
    rng = np.random.default_rng(2)
    normal, abnormal = rng.normal(size=60), rng.normal(1, size=40)
    cutoff = cutoff_value("youden", normal, abnormal)
    scores, labels = np.concatenate([normal, abnormal]), np.array([0] * 60 + [1] * 40)
    false, true, _ = roc_curve(labels, scores, drop_intermediate=False)
    assert np.mean(abnormal >= cutoff) - np.mean(normal >= cutoff) == pytest.approx(np.max(true - false))


def test_f1_is_the_best_of_sklearn() -> None:
    rng = np.random.default_rng(3)
    normal, abnormal = rng.normal(size=60), rng.normal(1, size=40)
    scores, labels = np.concatenate([normal, abnormal]), np.array([0] * 60 + [1] * 40)
    best = max(f1_score(labels, scores >= c) for c in scores)
    assert f1_score(labels, scores >= cutoff_value("f1", normal, abnormal)) == pytest.approx(best)


def test_a_value_is_taken_as_it_is() -> None:
    assert cutoff_value("value=0.25", EMPTY, EMPTY) == 0.25


@pytest.mark.parametrize("policy", ["specificity=1", "specificity=0", "specificity=x", "best", "youden=1", "value="])
def test_unknown_policies_are_refused(policy: str) -> None:
    with pytest.raises(MedadError, match="no cutoff policy"):
        parse_policy(policy)


@pytest.mark.parametrize(
    ("policy", "needed"), [("specificity=0.95", 19), ("specificity=0.9", 9), ("specificity=0.99", 99)]
)
def test_too_few_normals_are_refused_with_the_number_it_takes(policy: str, needed: int) -> None:
    assert cal.normals_needed(policy) == needed
    assert cutoff_value(policy, np.arange(needed - 1.0), EMPTY) is None
    assert cutoff_value(policy, np.arange(float(needed)), EMPTY) is not None
    with pytest.raises(MedadError, match=f"{needed - 1} healthy patients, {policy} takes at least {needed}"):
        _calibrate(_held_out(np.arange(needed - 1.0)), default_policy=policy)


def test_patients_are_scored_by_the_aggregation() -> None:
    data = HeldOut(np.array([1.0, 5.0, 3.0, 2.0]), np.array([0, 0, 1, 1]), ("a", "a", "b", "b"))
    assert data.by_patient("max").scores.tolist() == [5, 3]
    assert data.by_patient("mean").scores.tolist() == [3, 2.5]
    assert data.by_patient("top1").scores.tolist() == [5, 3]
    assert data.by_patient("max").labels.tolist() == [0, 1]
    assert data.items_per_patient() == (2, 2)
    with pytest.raises(MedadError, match="no aggregation"):
        data.by_patient("top0")


def test_policies_that_need_the_diseased_are_left_out_without_them() -> None:
    made = _calibrate(_held_out(np.random.default_rng(0).normal(size=30)))
    assert {c.policy for c in made.item.cutoffs} == {"specificity=0.95", "specificity=0.9"}
    with pytest.raises(MedadError, match="cannot be calibrated"):
        _calibrate(_held_out(np.arange(30.0)), default_policy="youden")


def test_interval_is_by_patient_and_holds_the_cutoff() -> None:
    rng = np.random.default_rng(4)
    scores = rng.normal(size=60)
    alone = _calibrate(_held_out(scores)).item.cutoffs[0]
    assert alone.interval.low <= alone.value <= alone.interval.high
    # Five equal slices of each patient add no information: the interval must not shrink.
    repeated = HeldOut(np.repeat(scores, 5), np.zeros(300, np.int64), tuple(f"p{i // 5}" for i in range(300)))
    many = _calibrate(repeated).item.cutoffs[0]
    width, width_many = (c.interval.high - c.interval.low for c in (alone, many))
    assert width_many > 0.6 * width


def test_decide_names_what_was_calibrated() -> None:
    level = Decider(_calibrate(_held_out(np.arange(40.0))).item)
    assert level.decide(100, "specificity=0.95").anomalous
    assert not level.decide(5, "specificity=0.95").anomalous
    with pytest.raises(MedadError, match=r"specificity=0\.95"):
        level.decide(1, "youden")
