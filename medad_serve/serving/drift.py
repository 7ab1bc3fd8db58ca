"""Whether recent scores still look like those of the calibration, whatever the share of abnormal patients is.

The calibration keeps the scores of normals, and how many of the patients served are abnormal is unknown. So what
is compared is the shape below the cutoff alone: abnormal patients score above it, or else alter that shape by as
many as the model misses. Two statistics are held against their distribution under no change: the two-sample
Kolmogorov-Smirnov distance, and the population stability index (PSI) over tenths of the reference, which is about
chi-square times (1/n + 1/m) (Yurdakul 2018, "Statistical properties of the population stability index").

Slices of one patient are alike, so sample sizes are counted in patients: a series counts as one, a slice that
came alone as the share of a patient that a slice was in the calibration. That errs to the careful side.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from medad_serve.spec import LevelCalibration

Scores = NDArray[np.float64]

WINDOW = 100
"""Patients that the window holds."""
MINIMUM = 20
"""Patients with scores below the cutoff from which on the statistics are told."""
ALPHA = 0.001
"""Chance of a false alarm of each of the two statistics on one full window; docs/serving.md has what was measured."""
BINS = 10
NOTABLE_PSI = 0.25
"""What the field calls a major shift; lower ones give no alarm, however sure they are."""
KEPT = 64
"""Scores kept of a longer series: evenly spaced quantiles."""


@dataclass(frozen=True)
class Drift:
    """What the window says; the statistics are None until enough is in it."""

    patients: float
    """In the window; a slice that came alone counts as a part of one."""
    share_anomalous: float | None
    """Of the answers in the window, weighed by patients."""
    ks: float | None
    ks_alarm_level: float | None
    psi: float | None
    psi_alarm_level: float | None
    alarm: bool


def ks_statistic(scores: Scores, weights: Scores, reference: Scores) -> float:
    """Return the largest distance between the distribution of ``scores``, weighed, and of sorted ``reference``."""
    order = np.argsort(scores)
    recent = scores[order]
    steps = np.concatenate([[0.0], np.cumsum(weights[order])])
    points = np.concatenate([recent, reference])
    ours = steps[np.searchsorted(recent, points, side="right")] / steps[-1]
    theirs = np.searchsorted(reference, points, side="right") / len(reference)
    return float(np.abs(ours - theirs).max())


def tenths(reference: Scores) -> Scores:
    """Return the inner edges of ``BINS`` bins that hold equal parts of sorted ``reference``; ties merge bins."""
    ranks = np.ceil(np.arange(1, BINS) * len(reference) / BINS).astype(int) - 1
    edges: Scores = np.unique(reference[ranks])
    inner: Scores = edges[edges < reference[-1]]
    return inner


def stability_index(scores: Scores, weights: Scores, reference: Scores) -> float:
    """Return PSI = sum (p - q) ln(p / q) over the bins, q of ``reference`` and p of ``scores``.

    ``weights`` are in patients; half a patient a bin is added in the proportions of the reference, so that an
    empty bin stays finite.
    """
    edges = tenths(reference)
    bins = len(edges) + 1
    q = np.bincount(np.searchsorted(edges, reference), minlength=bins) / len(reference)
    held = np.bincount(np.searchsorted(edges, scores), weights, minlength=bins)
    p = (held + bins / 2 * q) / (held.sum() + bins / 2)
    return float(((p - q) * np.log(p / q)).sum())


def ks_level(n: float, m: float, alpha: float = ALPHA) -> float:
    """Return the distance that samples of ``n`` and ``m`` patients exceed with probability ``alpha`` (asymptotic)."""
    return math.sqrt(-math.log(alpha / 2) / 2 * (1 / n + 1 / m))


def psi_level(n: float, m: float, bins: int, alpha: float = ALPHA) -> float:
    """Return the PSI that samples of ``n`` and ``m`` patients exceed with probability ``alpha``, at least 0.25.

    The chi-square quantile is by Wilson and Hilferty (1931), within 2 % here: scipy.stats would cost every
    worker 60 MiB.
    """
    if bins < 2:
        return math.inf
    spread = 2 / (9 * (bins - 1))
    quantile = (bins - 1) * (1 - spread + NormalDist().inv_cdf(1 - alpha) * math.sqrt(spread)) ** 3
    return max(NOTABLE_PSI, quantile * (1 / n + 1 / m))


@dataclass(frozen=True)
class _Entry:
    """One answer in the window."""

    scores: Scores
    patients: float
    anomalous: bool


class DriftWindow:
    """The scores of the last patients, held against the calibration at the level of slices or volumes."""

    def __init__(self, level: LevelCalibration) -> None:
        normal = np.asarray(level.normal_scores, np.float64)
        # A cutoff below most normals (high sensitivity, poor model) would leave little to compare.
        self.limit = max(level.cutoffs[0].value, float(np.nextafter(np.median(normal), np.inf)))
        self.reference = normal[normal < self.limit]
        self.reference_patients = level.patients * len(self.reference) / len(normal)
        self.bins = len(tenths(self.reference)) + 1
        self.share = min(1.0, level.patients / level.n)
        self.entries: deque[_Entry] = deque()
        self.patients = 0.0

    def add(self, scores: Sequence[float], *, whole: bool, anomalous: bool) -> None:
        """Take the item scores of one answer; ``whole`` where they are all that the patient has."""
        kept = np.asarray(scores, np.float64)
        if len(kept) > KEPT:
            kept = np.quantile(kept, (np.arange(KEPT) + 0.5) / KEPT, method="inverted_cdf")
        entry = _Entry(kept, 1.0 if whole else min(1.0, self.share * len(kept)), anomalous)
        self.entries.append(entry)
        self.patients += entry.patients
        while self.patients - self.entries[0].patients >= WINDOW:
            self.patients -= self.entries.popleft().patients

    def state(self) -> Drift:
        """Return what the window says now."""
        if not self.entries:
            return Drift(0.0, None, None, None, None, None, alarm=False)
        scores = np.concatenate([e.scores for e in self.entries])
        weights = np.repeat([e.patients / len(e.scores) for e in self.entries], [len(e.scores) for e in self.entries])
        flagged = math.fsum(e.patients for e in self.entries if e.anomalous) / self.patients
        below = scores < self.limit
        n, m = float(weights[below].sum()), self.reference_patients
        if n < MINIMUM:
            # so much lies above the cutoff that too little is left to compare: no ordinary ward's patients
            return Drift(self.patients, flagged, None, None, None, None, alarm=self.patients >= WINDOW)
        ks = ks_statistic(scores[below], weights[below], self.reference)
        psi = stability_index(scores[below], weights[below], self.reference)
        levels = ks_level(n, m), psi_level(n, m, self.bins)
        alarm = ks > levels[0] or psi > levels[1]
        return Drift(self.patients, flagged, ks, levels[0], psi, levels[1], alarm)
