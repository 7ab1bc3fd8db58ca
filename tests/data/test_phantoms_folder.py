"""Who of the phantoms' patients is what, and who tests."""

from collections import Counter

import numpy as np
import pytest

from medad_serve.data.phantoms.folder import kinds_and_tests


def dealt(healthy, abnormal, seed=0):
    return kinds_and_tests(np.random.default_rng(seed), healthy, abnormal, ("a", "b", "c"))


def test_half_of_each_kind_tests_and_a_fifth_of_the_healthy():
    assert Counter(dealt(100, 60)) == {
        ("", False): 78,
        ("", True): 22,
        **{(kind, tests): 10 for kind in "abc" for tests in (False, True)},
    }


@pytest.mark.parametrize(
    ("abnormal", "expected"),
    [
        (1, {("a", True): 1}),
        (3, {("a", True): 1, ("b", False): 1, ("c", True): 1}),
        (5, {("a", True): 1, ("a", False): 1, ("b", True): 1, ("b", False): 1, ("c", True): 1}),
    ],
)
def test_odd_ones_out_go_to_test_and_training_in_turn(abnormal, expected):
    assert Counter(dealt(0, abnormal)) == expected


@pytest.mark.parametrize(("healthy", "tests"), [(1, 0), (2, 1), (4, 1), (10, 2)])
def test_of_few_healthy_patients_one_tests_where_one_is_left_to_train(healthy, tests):
    assert sum(tested for _, tested in dealt(healthy, 0)) == tests


def test_the_order_follows_the_seed_alone():
    assert dealt(20, 20, seed=1) == dealt(20, 20, seed=1)
    assert dealt(20, 20, seed=1) != dealt(20, 20, seed=2)
