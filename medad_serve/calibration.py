"""Cutoffs, p-values and patient scores from held-out scores (split conformal prediction, Vovk et al. 2005)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from medad_serve.errors import MedadError
from medad_serve.spec import Calibration, Cutoff, InputRange, Interval, LevelCalibration

Scores = NDArray[np.float64]

DEFAULT_POLICY = "specificity=0.95"
DEFAULT_POLICIES = (DEFAULT_POLICY, "specificity=0.9", "specificity=0.99", "sensitivity=0.95", "youden", "f1")
MAX_STORED = 10_000
BOOTSTRAPS = 1000


def parse_policy(policy: str) -> tuple[str, Fraction | None]:
    """Split ``name=value``; the value stays exact, so that 0.95 of 20 is 19 and not 18.999."""
    name, _, text = policy.partition("=")
    if name in ("youden", "f1") and not text:
        return name, None
    try:
        value = Fraction(text)
    except (ValueError, ZeroDivisionError):
        value = None
    if name == "value" and value is not None:
        return name, value
    if name in ("specificity", "sensitivity") and value is not None and 0 < value < 1:
        return name, value
    raise MedadError(
        f"{policy!r} is no cutoff policy",
        "Use specificity=0.95, sensitivity=0.95 (between 0 and 1), youden, f1 or value=<score>",
    )


def normals_needed(policy: str) -> int:
    """Fewest held-out normals from which a policy's cutoff follows (specificity 1-a: n >= 1/a - 1)."""
    name, value = parse_policy(policy)
    if name == "specificity" and value is not None:
        return math.ceil(1 / (1 - value) - 1)
    return 0 if name in ("value", "sensitivity") else 1


def just_above(score: float) -> float:
    """Return the smallest cutoff that calls ``score`` normal."""
    return float(np.nextafter(score, np.inf))


def cutoff_value(policy: str, normal: Scores, abnormal: Scores) -> float | None:
    """Return the score from which on an input is anomalous, or None where the scores are too few.

    ``specificity=1-a`` lies just above the ceil((1-a)(n+1))-th smallest normal score, so that the conformal
    p-value is <= a exactly when the score reaches the cutoff.
    """
    name, value = parse_policy(policy)
    if name == "value" and value is not None:
        return float(value)
    if len(normal) < normals_needed(policy):
        return None
    if name == "specificity" and value is not None:
        grid = stored_scores(normal)
        rank = math.ceil(value * (len(normal) + 1))
        return just_above(grid[(rank - 1) * len(grid) // len(normal)])
    if not len(abnormal):
        return None
    if name == "sensitivity" and value is not None:
        missed = len(abnormal) - math.ceil(value * len(abnormal))
        return float(np.partition(abnormal, missed)[missed])
    return _best_cutoff(name, normal, abnormal)


def _best_cutoff(name: str, normal: Scores, abnormal: Scores) -> float:
    """Return the observed score at which Youden's J or F1 is largest; the higher one of a tie."""
    candidates = np.unique(np.concatenate([normal, abnormal]))[::-1]
    hits = len(abnormal) - np.searchsorted(np.sort(abnormal), candidates, side="left")
    alarms = len(normal) - np.searchsorted(np.sort(normal), candidates, side="left")
    if name == "youden":
        merit = hits / len(abnormal) - alarms / len(normal)
    else:
        merit = 2 * hits / (hits + alarms + len(abnormal))
    return float(candidates[int(np.argmax(merit))])


def p_value(score: float, normal_sorted: Scores, n: int) -> float:
    """Return the conformal p-value (1 + #{held-out normals with score >= s}) / (n + 1).

    ``normal_sorted`` may be a grid of ``len < n`` scores rounded upward, each standing for an equal share.
    """
    below = int(np.searchsorted(normal_sorted, score, side="left"))
    return (1 + n - -(-below * n // len(normal_sorted))) / (n + 1)


def stored_scores(normal: Scores) -> tuple[float, ...]:
    """Sort the scores for the manifest; above 10,000 keep quantiles rounded upward.

    Element i of the m kept is the ceil((i+1) n / m)-th smallest of all n, so that a p-value never comes out
    too small, and the cutoff taken from the same grid agrees with it.
    """
    ordered = np.sort(normal)
    if len(ordered) > MAX_STORED:
        ranks = np.ceil(np.arange(1, MAX_STORED + 1) * len(ordered) / MAX_STORED).astype(int) - 1
        ordered = ordered[ranks]
    return tuple(float(s) for s in ordered)


def parse_aggregation(name: str) -> Callable[[Scores], float]:
    """Return the function that makes a patient score of slice scores: ``max``, ``mean`` or ``top<k>``."""
    if name == "max":
        return lambda scores: float(np.max(scores))
    if name == "mean":
        return lambda scores: float(np.mean(scores))
    if name.startswith("top") and name[3:].isdigit() and int(name[3:]) > 0:
        k = int(name[3:])
        return lambda scores: float(np.mean(np.sort(scores)[-k:]))
    raise MedadError(f"{name!r} is no aggregation of slice scores", "Use max, mean or top<k>, e.g. top3")


@dataclass(frozen=True)
class HeldOut:
    """Held-out slice scores with the label (1 abnormal) and patient of each."""

    scores: Scores
    labels: NDArray[np.int64]
    patients: tuple[str, ...]

    def by_patient(self, aggregation: str) -> HeldOut:
        """Return one score a patient."""
        aggregate = parse_aggregation(aggregation)
        rows: dict[str, list[int]] = {}
        for row, patient in enumerate(self.patients):
            rows.setdefault(patient, []).append(row)
        return HeldOut(
            np.array([aggregate(self.scores[r]) for r in rows.values()], np.float64),
            np.array([int(self.labels[r].max()) for r in rows.values()], np.int64),
            tuple(rows),
        )

    def items_per_patient(self) -> tuple[int, int]:
        """Return the fewest and the most items that a patient has."""
        counts = np.unique(np.array(self.patients), return_counts=True)[1]
        return int(counts.min()), int(counts.max())


def _bootstrap_interval(policy: str, held_out: HeldOut, seed: int, level: float = 0.95) -> Interval | None:
    """Resample patients; None where too few resamples give a cutoff (a rare policy on few patients)."""
    rng = np.random.default_rng(seed)
    names = sorted(set(held_out.patients))
    index = {name: i for i, name in enumerate(names)}
    owner = np.array([index[p] for p in held_out.patients])
    rows = [np.flatnonzero(owner == i) for i in range(len(names))]
    values = []
    for _ in range(BOOTSTRAPS):
        picked = np.concatenate([rows[i] for i in rng.integers(0, len(names), len(names))])
        scores, labels = held_out.scores[picked], held_out.labels[picked]
        value = cutoff_value(policy, scores[labels == 0], scores[labels == 1])
        if value is not None:
            values.append(value)
    if len(values) < BOOTSTRAPS // 2:
        return None
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(low=float(low), high=float(high), level=level)


def _calibrate_level(held_out: HeldOut, policies: Sequence[str], seed: int) -> LevelCalibration:
    normal = held_out.scores[held_out.labels == 0]
    abnormal = held_out.scores[held_out.labels == 1]
    cutoffs = []
    patients = {p for p, label in zip(held_out.patients, held_out.labels, strict=True) if label == 0}
    for policy in policies:
        # Slices of one patient are alike: many of few patients do not make a rare false alarm measurable.
        value = cutoff_value(policy, normal, abnormal) if len(patients) >= normals_needed(policy) else None
        if value is None:
            continue
        interval = None if policy.startswith("value=") else _bootstrap_interval(policy, held_out, seed)
        counted = len(abnormal) if policy.startswith("sensitivity") else len(normal)
        cutoffs.append(Cutoff(policy=policy, value=value, n=counted, interval=interval))
    return LevelCalibration(
        normal_scores=stored_scores(normal), n=len(normal), patients=len(patients), cutoffs=tuple(cutoffs)
    )


def require_normals(held_out: HeldOut, policy: str) -> None:
    """Refuse, saying how many it takes, where the default policy has too few healthy patients."""
    needed = normals_needed(policy)
    have = len({p for p, label in zip(held_out.patients, held_out.labels, strict=True) if label == 0})
    if have < needed:
        raise MedadError(
            f"calibration holds {have} healthy patients, {policy} takes at least {needed}",
            "Add healthy patients, ask for a lower specificity, or train with calibration.method=out_of_fold",
        )


def calibrate(
    held_out: HeldOut,
    *,
    fingerprint: str,
    method: str,
    folds: int = 0,
    aggregation: str = "max",
    default_policy: str = DEFAULT_POLICY,
    policies: Sequence[str] = DEFAULT_POLICIES,
    heatmap_scale: float,
    inputs: InputRange | None = None,
    seed: int = 0,
) -> Calibration:
    """Make every cutoff that the held-out scores allow, at slice and at patient level.

    Policies that need diseased patients (sensitivity, youden, f1) are made only where there are some. Raises
    MedadError where the default policy cannot be made.
    """
    require_normals(held_out, default_policy)
    wanted = (default_policy, *(p for p in policies if p != default_policy))
    made = Calibration.model_validate(
        {
            "method": method,
            "folds": folds,
            "aggregation": aggregation,
            "items_per_patient": held_out.items_per_patient(),
            "data_fingerprint": fingerprint,
            "heatmap_scale": heatmap_scale,
            "item": _calibrate_level(held_out, wanted, seed),
            "patient": _calibrate_level(held_out.by_patient(aggregation), wanted, seed),
            "inputs": inputs,
        }
    )
    for level in (made.item, made.patient):
        if default_policy not in {c.policy for c in level.cutoffs}:
            raise MedadError(
                f"{default_policy} cannot be calibrated on this data",
                "It needs diseased patients in the calibration data; use specificity=0.95",
            )
    return made


@dataclass(frozen=True)
class Decision:
    """What one score means."""

    score: float
    p_value: float
    cutoff: float
    policy: str
    anomalous: bool


class Decider:
    """Holds scores against the cutoffs of one level."""

    def __init__(self, level: LevelCalibration) -> None:
        self.n = level.n
        self.normal_sorted = np.asarray(level.normal_scores, np.float64)
        self.cutoffs = {c.policy: c.value for c in level.cutoffs}

    def cutoff(self, policy: str) -> float:
        """Return the cutoff of a calibrated policy; raises MedadError for one that was not made."""
        try:
            return self.cutoffs[policy]
        except KeyError:
            made = ", ".join(self.cutoffs)
            raise MedadError(f"policy {policy!r} was not calibrated", f"This model has: {made}") from None

    def decide(self, score: float, policy: str) -> Decision:
        """Return what ``score`` means under ``policy``."""
        cutoff = self.cutoff(policy)
        return Decision(score, p_value(score, self.normal_sorted, self.n), cutoff, policy, score >= cutoff)
