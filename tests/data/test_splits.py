from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medad_serve.data import Given, SplitSettings, inherit_split, split_patients
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


FOLD = st.integers(1, 5)


@given(st.integers(40, 200), st.integers(10, 60), st.booleans())
def test_every_patient_is_tested_in_one_fold(healthy: int, diseased: int, supervised: bool) -> None:
    labels = _labels(healthy, diseased)
    tested: list[str] = []
    for fold in range(1, 6):
        split = split_patients(labels, SplitSettings(fold=fold), method="auto", policy=POLICY, supervised=supervised)
        assert set(split.roles) == set(labels)
        assert {labels[p] for p in split.patients("validation")} == {0, 1}
        assert any(labels[p] for p in split.patients("train")) == supervised
        tested += split.patients("test")
    assert sorted(tested) == sorted(labels)


@given(FOLD, st.integers(30, 60), st.booleans())
def test_patients_that_the_data_set_tests_on_stay_there(fold: int, healthy: int, supervised: bool) -> None:
    labels = _labels(healthy, 12)
    fixed = {"h0", "h1", "h2", "d0", "d1"}
    given_roles = {p: "test" if p in fixed else "train" for p in labels}
    for settings in (SplitSettings(), SplitSettings(fold=fold)):
        split = split_patients(
            labels, settings, method="auto", policy="specificity=0.8", given=Given(given_roles), supervised=supervised
        )
        assert split.patients("test") == fixed
        assert set(split.roles) == set(labels)
        assert {labels[p] for p in split.patients("validation")} == {0, 1}


def test_folds_beside_a_fixed_test_list_validate_each_patient_once() -> None:
    labels = _labels(38, 10)
    given_roles = {p: "test" if p in {f"h{i}" for i in range(8)} else "train" for p in labels}
    validated: list[str] = []
    for fold in range(1, 6):
        split = split_patients(
            labels, SplitSettings(fold=fold), method="validation", policy=POLICY, given=Given(given_roles)
        )
        validated += [p for p in split.patients("validation") if not labels[p]]
    assert sorted(validated) == sorted(p for p in labels if given_roles[p] == "train" and not labels[p])


def test_a_fold_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="fold 6 of 5 does not exist"):
        SplitSettings(fold=6)


def test_cross_validation_on_few_patients_trains_no_folds_of_folds() -> None:
    split = split_patients(_labels(70, 70), SplitSettings(fold=1), method="auto", policy=POLICY)
    assert split.method == "validation"
    assert not split.folds
    assert not split.patients("calibration")


def test_a_supervised_model_learns_from_the_diseased_too() -> None:
    labels = _labels(200, 100)
    split = split_patients(labels, SplitSettings(), method="auto", policy=POLICY, supervised=True)
    sick = {role: sum(labels[p] for p in split.patients(role)) for role in ("train", "validation", "test")}
    assert sick == {"train": 60, "validation": 25, "test": 15}
    assert not any(labels[p] for p in split.patients("calibration"))


def test_a_run_that_builds_on_another_keeps_its_healthy_patients_apart() -> None:
    labels = _labels(70, 40)
    parent = split_patients(labels, SplitSettings(), method="auto", policy=POLICY)
    child = inherit_split(parent, labels, SplitSettings(), supervised=True)
    assert {p: r for p, r in child.roles.items() if not labels[p]} == {
        p: r for p, r in parent.roles.items() if not labels[p]
    }
    assert child.folds == parent.folds
    assert child.patients("test") == parent.patients("test")
    divided = [p for p in parent.patients("validation") if labels[p]]
    assert {child.roles[p] for p in divided} == {"train", "validation"}


def test_folds_that_the_data_set_numbers_are_kept() -> None:
    labels = _labels(30, 10)
    folds = {p: 1 + int(p[1:]) // 10 for p in labels}
    for number in (1, 2, 3):
        settings = SplitSettings(folds=3, fold=number)
        split = split_patients(labels, settings, method="validation", policy=POLICY, given=Given(folds=folds))
        assert split.patients("test") == {p for p in labels if folds[p] == number}
