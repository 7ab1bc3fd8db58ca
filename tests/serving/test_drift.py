"""The drift statistics against scipy and plain formulas, and how often their alarm sounds."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from false_alarms import alarms, level_of, patients_of, resampled, simulated
from scipy import special, stats

from medad_serve.serving import drift
from medad_serve.serving.drift import ALPHA, WINDOW, DriftWindow, Scores

DOCUMENTED = 0.002
"""False alarms of a full window, by docs/serving.md; at most so many more as chance brings."""


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def watched(level_scores: Scores, stream: Scores) -> DriftWindow:
    """A window over one score a patient."""
    window = DriftWindow(level_of(np.split(level_scores, len(level_scores))))
    for score in stream:
        window.add([float(score)], whole=False, anomalous=bool(score >= window.limit))
    return window


def most(count: int, rate: float) -> float:
    """Most alarms of ``count`` windows that a false-alarm rate lets be, but for one experiment in a thousand."""
    return float(stats.binom.ppf(0.999, count, rate))


@pytest.mark.parametrize("decimals", [8, 0])
def test_ks_is_scipys(decimals: int) -> None:
    """Also with ties."""
    for seed in range(20):
        recent = rng(seed).normal(0.3, 1, 73).round(decimals)
        reference = np.sort(rng(seed + 100).normal(0, 1, 41).round(decimals))
        expected = stats.ks_2samp(recent, reference).statistic
        assert drift.ks_statistic(recent, np.ones(73), reference) == pytest.approx(expected, abs=1e-12)


def test_a_weight_counts_as_so_many_scores() -> None:
    recent, reference = rng(0).normal(size=30), np.sort(rng(1).normal(size=50))
    weights = rng(2).integers(1, 6, 30)
    expected = stats.ks_2samp(np.repeat(recent, weights), reference).statistic
    assert drift.ks_statistic(recent, weights / 7, reference) == pytest.approx(expected, abs=1e-12)


def test_psi_is_the_plain_formula() -> None:
    reference = np.sort(rng(0).gamma(2, size=200))
    recent, weights = rng(1).gamma(2.5, size=90), rng(2).uniform(0.1, 1, 90)
    edges = [reference[20 * k - 1] for k in range(1, 10)]
    expected = 0.0
    for low, high in zip([-math.inf, *edges], [*edges, math.inf], strict=True):
        q = sum(low < r <= high for r in reference) / 200
        p = sum(w for s, w in zip(recent, weights, strict=True) if low < s <= high)
        p = (p + 5 * q) / (sum(weights) + 5)
        expected += (p - q) * math.log(p / q)
    assert drift.stability_index(recent, weights, reference) == pytest.approx(expected, rel=1e-12)


def test_an_unchanged_or_emptied_bin_leaves_psi_finite() -> None:
    reference = np.arange(100.0)
    assert drift.stability_index(reference, np.ones(100), reference) == pytest.approx(0, abs=1e-12)
    assert math.isfinite(drift.stability_index(np.full(50, 99.0), np.ones(50), reference))


def test_equal_scores_make_one_bin_and_no_alarm() -> None:
    state = watched(np.full(40, 2.0), np.full(200, 2.0)).state()
    assert (state.ks, state.psi, state.alarm) == (0, 0, False)


@pytest.mark.parametrize("alpha", [0.05, ALPHA])
@pytest.mark.parametrize(("n", "m"), [(100, 60), (20, 12.5)])
def test_the_levels_are_the_quantiles_of_scipy(n: float, m: float, alpha: float) -> None:
    size = n * m / (n + m)
    # the one-term tail of Kolmogorov's series, from above
    assert drift.ks_level(n, m, alpha) == pytest.approx(special.kolmogi(alpha) / math.sqrt(size), rel=1e-4)
    for bins in (4, 10):
        expected = max(0.25, stats.chi2.ppf(1 - alpha, bins - 1) / size)
        assert drift.psi_level(n, m, bins, alpha) == pytest.approx(expected, rel=0.02)


def test_each_statistic_exceeds_its_level_as_often_as_it_says() -> None:
    """At 5 %, where 2,000 windows tell it apart from a level that is never reached."""
    over = np.zeros(2)
    for seed in range(2000):
        recent, reference = rng(seed).normal(size=100), np.sort(rng(seed + 10_000).normal(size=200))
        over[0] += drift.ks_statistic(recent, np.ones(100), reference) > drift.ks_level(100, 200, 0.05)
        over[1] += drift.stability_index(recent, np.ones(100), reference) > drift.psi_level(100, 200, 10, 0.05)
    low, high = stats.binom.ppf([0.001, 0.999], 2000, [0.02, 0.05])
    assert (low <= over).all()
    assert (over <= high).all()


@pytest.mark.parametrize(
    ("items", "likeness", "one_by_one", "windows"), [(1, 0, False, 600), (28, 0.9, False, 300), (28, 0.9, True, 50)]
)
def test_false_alarms_of_full_windows_stay_below_what_is_documented(
    items: int, likeness: float, one_by_one: bool, windows: int
) -> None:
    """Slices of a patient are alike: counted one by one they would sound it in every other window."""
    found = alarms(simulated(60, items, likeness), windows, seed=1, one_by_one=one_by_one)
    assert found.at_full_window <= most(windows, DOCUMENTED)


def test_watching_five_hundred_patients_rarely_sounds_the_alarm() -> None:
    found = alarms(simulated(60), 60, seed=2, patients=5 * WINDOW, look_every=10)
    assert found.ever <= most(60, 0.04)


def test_more_abnormal_patients_are_no_drift() -> None:
    """Compared over all scores, a third of abnormal patients sounds it in four windows of ten."""
    found = alarms(simulated(60, prevalence=0.3), 300, seed=3)
    assert found.at_full_window <= most(300, DOCUMENTED)


@pytest.mark.parametrize("step", [-1.5, 1.5, 10.0])
def test_scores_that_move_sound_the_alarm(step: float) -> None:
    """By one and a half standard deviations either way, and so far that hardly any stays below the cutoff."""
    found = alarms(simulated(60), 50, seed=4, change=lambda scores: scores + step)
    assert found.at_full_window >= 45


def test_a_spread_that_shrinks_sounds_the_alarm() -> None:
    found = alarms(simulated(60), 50, seed=5, change=lambda scores: scores / 4)
    assert found.at_full_window >= 49


def test_nothing_is_told_of_too_few() -> None:
    state = watched(rng(0).normal(size=60), rng(1).normal(5, 1, 19)).state()
    assert (state.ks, state.psi, state.alarm) == (None, None, False)
    assert (state.patients, state.share_anomalous) == (19, 1)
    assert DriftWindow(level_of([np.arange(30.0)])).state().patients == 0


def test_the_window_forgets() -> None:
    usual = rng(1).normal(size=WINDOW)
    window = watched(rng(0).normal(size=60), np.concatenate([usual - 3, usual]))
    assert window.state() == watched(rng(0).normal(size=60), usual).state()
    assert len(window.entries) == WINDOW


def test_patients_are_counted_not_slices() -> None:
    window = DriftWindow(level_of([rng(seed).normal(size=28) for seed in range(30)]))
    window.add([0.1] * 28, whole=True, anomalous=True)
    assert window.state().patients == 1
    for _ in range(28):
        window.add([0.1], whole=False, anomalous=False)
    assert window.state().patients == pytest.approx(2)
    assert window.state().share_anomalous == pytest.approx(0.5)


def test_a_long_series_is_kept_as_quantiles() -> None:
    window = DriftWindow(level_of([rng(seed).normal(size=28) for seed in range(30)]))
    series = rng(0).normal(size=4000)
    window.add(series, whole=True, anomalous=False)
    [entry] = window.entries
    assert len(entry.scores) == drift.KEPT
    assert stats.ks_2samp(entry.scores, series).statistic <= 1 / drift.KEPT


def test_a_cutoff_below_most_normals_still_leaves_half_to_compare() -> None:
    level = level_of(np.split(np.arange(100.0), 100))
    low = level.model_copy(update={"cutoffs": (level.cutoffs[0].model_copy(update={"value": -5.0}),)})
    assert len(DriftWindow(low).reference) == 50


def film_scores(folder: Path) -> list[Scores]:
    """Score real films, by patient: what principal components of a third of the patients leave of each."""
    files = sorted((folder / "train" / "NORMAL").iterdir())
    names = [file.stem.removeprefix("NORMAL2-").split("-")[1] for file in files]
    small = [
        cv2.resize(cv2.imread(str(f), cv2.IMREAD_GRAYSCALE), (32, 32), interpolation=cv2.INTER_AREA) for f in files
    ]
    films = np.stack(small).reshape(len(files), -1) / 255
    fitted = np.array([int(name) % 3 == 0 for name in names])
    mean = films[fitted].mean(axis=0)
    parts = np.linalg.svd(films[fitted] - mean, full_matrices=False)[2][:32]
    rest = films[~fitted] - mean
    left = np.square(rest - rest @ parts.T @ parts).mean(axis=1)
    return patients_of(left, [n for n, was in zip(names, fitted, strict=True) if not was])


@pytest.mark.slow
def test_false_alarms_on_real_films_by_patient(real_data: Callable[[str], Path]) -> None:
    patients = film_scores(real_data("chest_xray"))
    assert len(patients) > 500
    for one_by_one in (False, True):
        found = alarms(resampled(patients, 60), 500, seed=6, one_by_one=one_by_one)
        assert found.at_full_window <= most(500, DOCUMENTED)
    found = alarms(resampled(patients, 60), 50, seed=7, change=lambda scores: scores * 1.5)
    assert found.at_full_window >= 45
