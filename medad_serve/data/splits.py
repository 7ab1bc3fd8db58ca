"""Who trains, who chooses, who calibrates and who reports: by patient, nobody twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from medad_serve.calibration import normals_needed
from medad_serve.data.samples import Role
from medad_serve.errors import MedadError
from medad_serve.spec import Frozen

Method = Literal["auto", "held_out", "out_of_fold", "validation"]
Patients = list[str]


class SplitSettings(Frozen):
    """Shares of healthy patients; diseased ones go half to validation and half to test.

    Where the data set itself names test patients, the shares divide the rest.
    """

    train: float = Field(0.6, gt=0, lt=1)
    validation: float = Field(0.1, gt=0, lt=1)
    calibration: float = Field(0.15, ge=0, lt=1)
    seed: int = Field(0, ge=0)
    folds: int = Field(5, ge=2)
    """Folds of out-of-fold calibration and of cross-validation."""
    fold: int | None = Field(None, ge=1)
    """Cross-validation: this fold is the test split, or validation where the data set names test patients."""

    @model_validator(mode="after")
    def _is_usable(self) -> Self:
        if self.train + self.validation + self.calibration >= 1:
            raise ValueError("train, validation and calibration must leave a share for test")
        if self.fold is not None and self.fold > self.folds:
            raise ValueError(f"fold {self.fold} of {self.folds} does not exist")
        return self


class Split(Frozen):
    """The role of every patient; ``folds`` numbers the training patients where calibration is out of fold."""

    method: Literal["held_out", "out_of_fold", "validation"]
    """Whose scores make the cutoffs; ``validation`` (cross-validation on few patients) serves reports alone."""
    roles: dict[str, Role]
    folds: dict[str, int] = Field(default_factory=dict)

    def patients(self, *roles: Role) -> set[str]:
        """Return the patients that have one of the roles."""
        return {p for p, role in self.roles.items() if role in roles}


Shares = dict[Role, Patients]


def _cut(patients: Patients, shares: Mapping[Role, float], rest: Role) -> Shares:
    """Cut a list by shares of its length; what is left over has the role ``rest``."""
    bounds = np.cumsum([round(len(patients) * share) for share in shares.values()])
    out: Shares = dict(zip(shares, _pieces(patients, bounds.tolist()), strict=True))
    out[rest] = out.get(rest, []) + patients[int(bounds[-1]) :]
    return out


def _pieces(patients: Patients, bounds: list[int]) -> list[Patients]:
    return [patients[start:stop] for start, stop in zip([0, *bounds], bounds, strict=False)]


def _merge(*parts: Shares) -> Shares:
    out: Shares = {"train": [], "validation": [], "calibration": [], "test": []}
    for part in parts:
        for role, patients in part.items():
            out[role] = out[role] + patients
    return out


@dataclass(frozen=True)
class Given:
    """What a data set itself says of its patients."""

    roles: Mapping[str, Role] = field(default_factory=dict)
    folds: Mapping[str, int] = field(default_factory=dict)


class _Drawing:
    """Gives the patients of one kind (healthy or diseased) their roles."""

    def __init__(self, patients: Patients, given: Given, settings: SplitSettings) -> None:
        self.settings = settings
        self.tested = "test" in given.roles.values()
        self.folds = given.folds
        self.fixed: Shares = {}
        for patient in patients:
            role = given.roles.get(patient, "train")
            if role != "train":
                self.fixed.setdefault(role, []).append(patient)
        self.pool = [p for p in patients if given.roles.get(p, "train") == "train"]

    def _fold(self) -> tuple[Shares, Patients]:
        """Set the asked-for fold aside."""
        if self.settings.fold is None:
            return {}, self.pool
        numbers = {**{p: 1 + i % self.settings.folds for i, p in enumerate(self.pool)}, **self.folds}
        aside = [p for p in self.pool if numbers[p] == self.settings.fold]
        left = [p for p in self.pool if p not in set(aside)]
        return {"validation" if self.tested else "test": aside}, left

    def learned(self) -> Shares:
        """Divide patients that are learned from."""
        aside, left = self._fold()
        settings = self.settings
        shares: dict[Role, float] = {"train": settings.train, "validation": settings.validation}
        shares["calibration"] = settings.calibration
        rest: Role = "test"
        if self.tested or aside:
            rest = "train"
            if "validation" in {**self.fixed, **aside}:
                del shares["validation"]
            if "calibration" in self.fixed:
                del shares["calibration"]
            total = settings.train + sum(share for role, share in shares.items() if role != "train")
            shares = {role: share / total for role, share in shares.items() if role != "train"}
        return _merge(self.fixed, aside, _cut(left, shares, rest) if shares else {"train": left})

    def looked_at(self) -> Shares:
        """Divide patients that only choose and test."""
        aside, left = self._fold()
        if self.tested or aside:
            return _merge(self.fixed, aside, {"validation": left})
        return _merge(self.fixed, _cut(left, {"validation": 0.5 - 1e-9}, "test"))


def split_patients(
    labels: dict[str, int],
    settings: SplitSettings,
    *,
    method: Method,
    policy: str,
    given: Given | None = None,
    supervised: bool = False,
) -> Split:
    """Give every patient one role; roles and folds that the data set states (``given``) are kept.

    ``auto`` holds a calibration split out where it has enough healthy patients for ``policy``, and otherwise
    turns to out-of-fold scores: train and calibration become one, cut into folds (in cross-validation, where
    that would train folds of folds, to the validation patients). A ``supervised`` model learns from diseased
    patients too. Raises MedadError where healthy patients are too few, saying how many it takes.
    """
    given = given or Given()
    rng = np.random.default_rng(settings.seed)
    healthy, diseased = (
        [str(p) for p in rng.permutation(sorted(p for p, label in labels.items() if label == kind))] for kind in (0, 1)
    )
    shares = _Drawing(healthy, given, settings).learned()
    empty = [role for role in ("train", "validation", "test") if not shares[role]]
    if empty:
        raise MedadError(
            f"{len(healthy)} healthy patients leave none for {', '.join(empty)}",
            "Add healthy patients, 10 or more",
        )
    chosen = _method(shares, settings, method, policy)
    folds: dict[str, int] = {}
    if chosen != "held_out":
        shares = _merge(shares, {"train": shares.pop("calibration")})
    if chosen == "out_of_fold":
        folds = {p: i % settings.folds for i, p in enumerate(shares["train"])}
    others = _Drawing(diseased, given, settings)
    sick = others.learned() if supervised else others.looked_at()
    if supervised:  # cutoffs that need diseased patients are made on those of validation
        sick = _merge(sick, {"validation": sick.pop("calibration")})
    roles = {p: role for role, patients in _merge(shares, sick).items() for p in patients}
    return Split(method=chosen, roles=roles, folds=folds)


def _method(
    shares: Shares, settings: SplitSettings, method: Method, policy: str
) -> Literal["held_out", "out_of_fold", "validation"]:
    """Choose whose scores make the cutoffs, or refuse where they are too few."""
    needed = max(1, normals_needed(policy))
    pooled = len(shares["train"]) + len(shares["calibration"])
    if method == "auto":
        fallback: Method = "out_of_fold" if settings.fold is None else "validation"
        method = "held_out" if len(shares["calibration"]) >= needed else fallback
    if method == "validation":
        return "validation"
    have = len(shares["calibration"]) if method == "held_out" else pooled
    if have < needed or (method == "out_of_fold" and pooled < settings.folds):
        raise MedadError(
            f"{policy} takes {needed} healthy patients to calibrate ({method.replace('_', ' ')}), there are {have}",
            "Add healthy patients or lower calibration.policy",
        )
    return "held_out" if method == "held_out" else "out_of_fold"


def inherit_split(parent: Split, labels: dict[str, int], settings: SplitSettings, supervised: bool) -> Split:
    """Return the split of a run whose model builds on that of another, trained on the same patients.

    Healthy patients keep their roles and folds, so that nobody who trained the first model calibrates or tests
    the second; diseased patients who chose the first one's checkpoint are divided anew where they are learned from.
    """
    roles = dict(parent.roles)
    if supervised:
        rng = np.random.default_rng(settings.seed)
        free = [str(p) for p in rng.permutation(sorted(p for p, r in roles.items() if labels[p] and r != "test"))]
        kept = max(1, round(len(free) * settings.validation / (settings.validation + settings.train)))
        roles.update({p: "validation" if i < kept else "train" for i, p in enumerate(free)})
    return Split(method=parent.method, roles=roles, folds=parent.folds)
