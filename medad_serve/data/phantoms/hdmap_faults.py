"""Faults of a gearbox in its health-data map: graded 0 to 10, of soft outline, none a pasted rectangle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import cv2
import numpy as np

from medad_serve.data.phantoms.drawing import Floats, Mask, floats
from medad_serve.data.phantoms.hdmap_machine import (
    MESH_DB,
    PX_PER_ORDER,
    SIZE,
    Gearbox,
    Machine,
    Run,
    bell,
    levels,
    power,
)

Kind = Literal["energy", "sidebands", "loss", "shift"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""Impacts that excite a resonance; modulation of a meshing line; a line that fades; a line that leaves its order."""
SEVERITY_MAX = 10.0

_COLUMNS = np.arange(SIZE, dtype=np.float32)
_ORDERS = np.arange(SIZE - 1, -1, -1, dtype=np.float32)[:, None] / np.float32(PX_PER_ORDER)
_MARKED = 1 / 3  # share of the largest change, in dB, from which a point is marked in the mask
_GAP = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 11))


@dataclass(frozen=True)
class Fault:
    """One fault: where it lies, and how severe it is."""

    kind: Kind
    severity: float
    """0 (nothing is changed) to 10: how strongly, and a little for how long."""
    middle: float
    """Column."""
    half: float
    """Half of its duration at severity 10, px."""
    harmonic: int
    """Which meshing line, or which resonance, counted from 0."""
    spacing: float
    """Orders between added sidebands; for ``energy`` its height in orders."""
    sign: int
    """Which way a line moves."""

    @classmethod
    def draw(cls, rng: np.random.Generator, kind: Kind, severity: float) -> Fault:
        """Draw a fault of a kind anywhere in the run."""
        return cls(
            kind=kind,
            severity=severity,
            middle=rng.uniform(0.25, 0.75) * SIZE,
            half=rng.uniform(0.12, 0.3) * SIZE,
            harmonic=int(rng.integers(3 if kind != "energy" else 2)),
            spacing=rng.uniform(3.0, 6.5) if kind == "energy" else rng.uniform(1.4, 2.0),
            sign=int(rng.choice((-1, 1))),
        )

    @property
    def share(self) -> float:
        """Severity as a share of the largest."""
        return self.severity / SEVERITY_MAX

    def course(self) -> Floats:
        """Return how much of it is there in each column, ``(256,)``: it comes and goes softly."""
        half = self.half * (0.6 + 0.4 * self.share)
        away = np.abs(_COLUMNS - np.float32(self.middle)) / np.float32(half)
        return floats(1 / (1 + np.power(away, 6)))


def faulty(design: Gearbox, machine: Machine, run: Run, fault: Fault) -> tuple[Floats, Mask]:
    """Return the noise-free level in dB ``(256, 256)`` of a run with a fault, and the points that it changed."""
    moved = raised = added = None
    if fault.kind == "energy":
        added = _energy(design, machine, run, fault)
    elif fault.kind == "sidebands":
        added = _sidebands(design, fault)
    elif fault.kind == "loss":
        raised = -_of_harmonic(design, fault) * (20 * fault.share * fault.course())
    else:
        moved = fault.sign * _of_harmonic(design, fault) * (1.6 * fault.share * fault.course())
    level = levels(design, machine, run, moved=moved, raised_db=raised, added=added)
    return level, _marked(np.abs(level - levels(design, machine, run)))


def _marked(change: Floats) -> Mask:
    """Return the region of the larger changes, without the gaps between lines that changed together."""
    large = (change > 0) & (change >= _MARKED * change.max())
    return np.asarray(cv2.morphologyEx(large.astype(np.uint8), cv2.MORPH_CLOSE, _GAP) > 0)


def _of_harmonic(design: Gearbox, fault: Fault) -> Floats:
    """Return 1 for the lines of one meshing harmonic (itself and its sidebands), 0 for the others, ``(lines, 1)``."""
    order = design.harmonics()[fault.harmonic]
    near = [abs(line.order - order) < 2.1 * design.carrier and line.load >= 1 for line in design.lines()]
    return floats(near)[:, None]


def _energy(design: Gearbox, machine: Machine, run: Run, fault: Fault) -> Floats:
    """Return power over the floor: a spindle around a resonance, as impacts that set it ringing leave it.

    Their amplitude, and that of the sidebands, follows severity.
    """
    order, _, level = design.resonances[fault.harmonic]
    place = order * machine.tuning[fault.harmonic] / run.speed + 0.5 * fault.sign * fault.spacing
    width = fault.spacing * (0.4 + 0.6 * fault.course())
    strength = power(level + machine.resonance_db[fault.harmonic]) * 8 * fault.share**2
    return floats(strength * np.square(fault.course()) * bell((_ORDERS - place) / width, 0.7))


def _sidebands(design: Gearbox, fault: Fault) -> Floats:
    """Return power over the floor: lines on both sides of a meshing line, weaker the further off."""
    order, level = design.harmonics()[fault.harmonic], MESH_DB[fault.harmonic]
    total = np.zeros((SIZE, SIZE), np.float32)
    for step in range(1, 6):
        for side in (-1, 1):
            line = bell(_ORDERS - (order + side * step * fault.spacing), 0.36)
            total += line * (power(level - 5.0 - 0.8 * step) * fault.share**2 * fault.course())
    return total
