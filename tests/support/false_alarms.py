"""How often the drift alarm sounds while nothing drifts, over patients that are simulated or drawn from real ones.

``python tests/support/false_alarms.py [SCORES.npz]`` prints the figures that docs/serving.md states: of simulated
patients, and of real ones where a file gives ``scores``, ``labels`` (1 abnormal) and ``patients`` of held-out items.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medad_serve.calibration import cutoff_value, just_above
from medad_serve.serving.drift import WINDOW, DriftWindow
from medad_serve.spec import Cutoff, LevelCalibration

Scores = NDArray[np.float64]
Draw = Callable[[np.random.Generator], tuple[list[Scores], Iterator[Scores]]]
"""From a generator: the patients of one calibration, and an endless stream of others."""
POLICY = "specificity=0.95"


def level_of(patients: Sequence[Scores]) -> LevelCalibration:
    """Calibrate items on the scores of each patient; below 19 items the cutoff lies above all of them."""
    scores = np.sort(np.concatenate(patients))
    value = cutoff_value(POLICY, scores, np.empty(0))
    cutoff = Cutoff(policy=POLICY, value=just_above(scores[-1]) if value is None else value, n=len(scores))
    return LevelCalibration(normal_scores=tuple(scores), n=len(scores), patients=len(patients), cutoffs=(cutoff,))


def simulated(
    calibration: int, items: int = 1, likeness: float = 0.0, prevalence: float = 0.0, gap: float = 3.0
) -> Draw:
    """Normal scores, correlated by ``likeness`` within a patient; abnormal patients score ``gap`` higher."""

    def patient(rng: np.random.Generator) -> Scores:
        return np.sqrt(likeness) * rng.normal() + np.sqrt(1 - likeness) * rng.normal(size=items)

    def draw(rng: np.random.Generator) -> tuple[list[Scores], Iterator[Scores]]:
        stream = (patient(rng) + gap * (rng.random() < prevalence) for _ in iter(int, 1))
        return [patient(rng) for _ in range(calibration)], stream

    return draw


def resampled(
    normal: Sequence[Scores], calibration: int, abnormal: Sequence[Scores] = (), prevalence: float = 0.0
) -> Draw:
    """Real patients: some calibrate, the others are drawn again and again."""

    def draw(rng: np.random.Generator) -> tuple[list[Scores], Iterator[Scores]]:
        order = rng.permutation(len(normal))
        pools = [normal[i] for i in order[calibration:]], abnormal
        picked = (pools[int(rng.random() < prevalence)] for _ in iter(int, 1))
        return [normal[i] for i in order[:calibration]], (pool[rng.integers(len(pool))] for pool in picked)

    return draw


@dataclass(frozen=True)
class Alarms:
    """Of streams over one calibration each."""

    streams: int
    at_full_window: int
    """Streams in alarm when their window was full for the first time."""
    ever: int
    """Streams in alarm at any look."""

    def __str__(self) -> str:
        return f"{self.at_full_window / self.streams:.2%} of full windows, {self.ever / self.streams:.1%} of streams"


def alarms(
    draw: Draw,
    streams: int,
    *,
    seed: int,
    patients: int = WINDOW,
    look_every: int = WINDOW,
    one_by_one: bool = False,
    change: Callable[[Scores], Scores] = lambda scores: scores,
) -> Alarms:
    """Watch ``streams`` of so many patients, looking after every few; ``one_by_one``: slices come alone."""
    full = ever = 0
    for number in range(streams):
        calibration, stream = draw(np.random.default_rng([seed, number]))
        window = DriftWindow(level_of(calibration))
        heard = []
        for count in range(1, patients + 1):
            scores = change(next(stream))
            for part in np.split(scores, len(scores)) if one_by_one else [scores]:
                window.add(part, whole=not one_by_one, anomalous=False)
            if count % look_every == 0:
                heard.append(window.state().alarm)
        full += heard[WINDOW // look_every - 1]
        ever += any(heard)
    return Alarms(streams, full, ever)


def patients_of(scores: Scores, patients: Sequence[str]) -> list[Scores]:
    """Gather scores by patient."""
    found: dict[str, list[float]] = {}
    for score, patient in zip(scores, patients, strict=True):
        found.setdefault(patient, []).append(float(score))
    return [np.array(each) for each in found.values()]


def _print(what: str, draw: Draw, streams: int = 200, **how: bool) -> None:
    print(what, alarms(draw, streams, seed=0, patients=5 * WINDOW, look_every=10, **how), sep=": ", flush=True)


def main() -> None:
    """Print the table."""
    for calibration in (20, 60, 200):
        _print(f"{calibration} patients, a film each", simulated(calibration))
        for share in (0.3, 0.5):
            _print(f"{calibration} patients, a film each, {share:.0%} abnormal", simulated(calibration, 1, 0, share))
        for alone in (False, True):
            told = "sent one by one" if alone else "as series"
            draw = simulated(calibration, 28, 0.9)
            _print(f"{calibration} patients, 28 slices alike {told}", draw, 20 if alone else 200, one_by_one=alone)
    for path in sys.argv[1:]:
        held = np.load(path)
        normal, abnormal = (
            patients_of(held["scores"][held["labels"] == label], held["patients"][held["labels"] == label])
            for label in (0, 1)
        )
        for calibration in (20, 60, 200):
            for share in (0.0, 0.3, 0.5):
                draw = resampled(normal, calibration, abnormal, share)
                _print(f"{path}: {calibration} of {len(normal)} patients, {share:.0%} abnormal", draw)


if __name__ == "__main__":
    main()
