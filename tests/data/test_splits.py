from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medad_serve.data import SplitSettings, split_patients
from medad_serve.errors import MedadError

POLICY = "specificity=0.95"


def _labels(healthy: int, diseased: int) -> dict[str, int]:
    return {**{f"h{i}": 0 for i in range(healthy)}, **{f"d{i}": 1 for i in range(diseased)}}


@given(st.integers(60, 400), st.integers(2, 60), st.integers(0, 99))
def test_nobody_has_two_roles_and_only_the_healthy_train(healthy: int, diseased: int, seed: int) -> None:
    labels = _labels(healthy, diseased)
    split = split_patients(labels, SplitSettings(seed=seed), method="auto", policy=POLICY)
    groups = [split.patients(role) for role in ("train", "validation", "calibration", "test")]
    assert sum(map(len, groups)) == len(labels) == len(set().union(*groups))
    assert all(labels[p] == 0 for p in split.patients("train", "calibration"))
    assert abs(len([p for p in split.patients("test") if labels[p]]) - diseased / 2) <= 0.5
    assert set(split.folds) == (split.patients("train") if split.method == "out_of_fold" else set())


def test_shares_are_60_10_15_15() -> None:
    split = split_patients(_labels(200, 20), SplitSettings(), method="auto", policy=POLICY)
    counts = {r: sum(p[0] == "h" for p in split.patients(r)) for r in ("train", "validation", "calibration", "test")}
    assert counts == {"train": 120, "validation": 20, "calibration": 30, "test": 30}
    assert split.method == "held_out"


def test_too_small_a_calibration_split_turns_to_folds() -> None:
    split = split_patients(_labels(70, 70), SplitSettings(), method="auto", policy=POLICY)
    assert split.method == "out_of_fold"
    assert not split.patients("calibration")
    sizes = [list(split.folds.values()).count(k) for k in range(5)]
    assert max(sizes) - min(sizes) <= 1
    assert sum(sizes) == 52


def test_too_few_patients_are_refused_with_the_number_it_takes() -> None:
    with pytest.raises(MedadError, match="takes 19 healthy patients"):
        split_patients(_labels(20, 4), SplitSettings(), method="auto", policy=POLICY)
    with pytest.raises(MedadError, match="takes 19 healthy patients"):
        split_patients(_labels(70, 4), SplitSettings(), method="held_out", policy=POLICY)
    with pytest.raises(MedadError, match="leave none for"):
        split_patients(_labels(2, 4), SplitSettings(), method="auto", policy="specificity=0.5")


def test_the_seed_draws_the_split() -> None:
    first, again, other = (
        split_patients(_labels(100, 10), SplitSettings(seed=s), method="auto", policy=POLICY) for s in (1, 1, 2)
    )
    assert first == again
    assert first != other
