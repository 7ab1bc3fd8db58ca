"""Who trains, who chooses, who calibrates and who reports: by patient, nobody twice."""

from __future__ import annotations

from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from medad_serve.calibration import normals_needed
from medad_serve.data.samples import Role
from medad_serve.errors import MedadError
from medad_serve.spec import Frozen

Method = Literal["auto", "held_out", "out_of_fold"]


class SplitSettings(Frozen):
    """Shares of healthy patients; diseased ones go half to validation and half to test."""

    train: float = Field(0.6, gt=0, lt=1)
    validation: float = Field(0.1, gt=0, lt=1)
    calibration: float = Field(0.15, ge=0, lt=1)
    seed: int = Field(0, ge=0)
    folds: int = Field(5, ge=2)
    """Folds of out-of-fold calibration."""

    @model_validator(mode="after")
    def _something_is_left_for_test(self) -> Self:
        if self.train + self.validation + self.calibration >= 1:
            raise ValueError("train, validation and calibration must leave a share for test")
        return self


class Split(Frozen):
    """The role of every patient; ``folds`` numbers the training patients where calibration is out of fold."""

    method: Literal["held_out", "out_of_fold"]
    roles: dict[str, Role]
    folds: dict[str, int] = Field(default_factory=dict)

    def patients(self, *roles: Role) -> set[str]:
        """Return the patients that have one of the roles."""
        return {p for p, role in self.roles.items() if role in roles}


def _shares(patients: list[str], settings: SplitSettings) -> dict[Role, list[str]]:
    counts = [round(len(patients) * s) for s in (settings.train, settings.validation, settings.calibration)]
    first, second, third = np.cumsum(counts)
    return {
        "train": patients[:first],
        "validation": patients[first:second],
        "calibration": patients[second:third],
        "test": patients[third:],
    }


def split_patients(labels: dict[str, int], settings: SplitSettings, *, method: Method, policy: str) -> Split:
    """Give every patient one role.

    ``auto`` holds a calibration split out where it has enough healthy patients for ``policy``, and otherwise
    turns to out-of-fold scores: train and calibration become one, cut into folds. Raises MedadError where
    neither has enough, saying how many it takes.
    """
    rng = np.random.default_rng(settings.seed)
    healthy, diseased = (
        [str(p) for p in rng.permutation(sorted(p for p, label in labels.items() if label == kind))] for kind in (0, 1)
    )
    shares = _shares(healthy, settings)
    needed = max(1, normals_needed(policy))
    empty = [role for role in ("train", "validation", "test") if not shares[role]]
    if empty:
        raise MedadError(
            f"{len(healthy)} healthy patients leave none for {', '.join(empty)}",
            "Add healthy patients, 10 or more",
        )
    pooled = len(shares["train"]) + len(shares["calibration"])
    chosen = method
    if method == "auto":
        chosen = "held_out" if len(shares["calibration"]) >= needed else "out_of_fold"
    have = len(shares["calibration"]) if chosen == "held_out" else pooled
    if have < needed or (chosen == "out_of_fold" and pooled < settings.folds):
        raise MedadError(
            f"{policy} takes {needed} healthy patients to calibrate ({chosen.replace('_', ' ')}), there are {have}",
            "Add healthy patients or lower calibration.policy",
        )
    roles: dict[str, Role] = {p: role for role, patients in shares.items() for p in patients}
    half = len(diseased) // 2
    roles.update(dict.fromkeys(diseased[:half], "validation"))
    roles.update(dict.fromkeys(diseased[half:], "test"))
    folds: dict[str, int] = {}
    if chosen == "out_of_fold":
        pool = shares["train"] + shares["calibration"]
        roles.update(dict.fromkeys(pool, "train"))
        folds = {p: i % settings.folds for i, p in enumerate(pool)}
    return Split(method="held_out" if chosen == "held_out" else "out_of_fold", roles=roles, folds=folds)
