"""Health-data maps of a gearbox: vibration in dB over shaft order (rows, upward) and time (columns).

A map is what condition monitoring keeps of a run: order spectra side by side. Drawn are the meshing lines of two
stages with their harmonics and modulation sidebands and the first shaft orders (lines, at fixed orders), the
resonances of the housing (broad bands, fixed in hertz, so that they wander in order as the speed drifts), a floor
that falls with order, load that drifts and now and then steps, and the spread of averaged periodograms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medad_serve.data.phantoms.drawing import Floats, floats, opacity, wave

SIZE = 256
PX_PER_ORDER = 4.0
"""Rows of one shaft order; row 255 is order 0, row 0 nearly order 64."""
SHOWN_DB = (-8.0, 30.0)
"""Levels that 8-bit black and white stand for."""
MESH_DB = (24.0, 19.0, 15.0)
"""Mean level over the floor of the loud stage's meshing lines."""
Bytes = npt.NDArray[np.uint8]

_LINE_PX = 1.3  # standard deviation of a line: the window of the spectrum
_LOOKS = 8.0  # periodograms averaged into one column; in dB they spread by 4.34 / sqrt(looks)
_PROFILE = np.arange(SIZE - 1, -1, -1, dtype=np.float32)[:, None] / np.float32(PX_PER_ORDER)
"""Order of each row, (256, 1)."""


@dataclass(frozen=True)
class Line:
    """One line: its order, mean level over the floor in dB, and how much of the load's change it follows."""

    order: float
    level_db: float
    load: float


@dataclass(frozen=True)
class Gearbox:
    """The design that all machines of one data set share: where lines and resonances lie."""

    mesh: float
    """Meshing order of the loud stage; its harmonics and their sidebands follow."""
    carrier: float
    """Orders between a meshing line and its sidebands."""
    second: float
    """Meshing order of the other stage."""
    resonances: tuple[tuple[float, float, float], ...]
    """Centre and width in orders at nominal speed, level in dB over the floor."""

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Gearbox:
        """Draw a design."""
        mesh = rng.uniform(15.0, 19.0)
        return cls(
            mesh=mesh,
            carrier=rng.uniform(2.3, 3.0),
            second=mesh * rng.uniform(0.36, 0.44),
            resonances=(
                (rng.uniform(22, 28), rng.uniform(3.0, 4.5), rng.uniform(5, 8)),
                (rng.uniform(42, 50), rng.uniform(4.0, 6.0), rng.uniform(4, 7)),
            ),
        )

    def harmonics(self) -> tuple[float, ...]:
        """Return the orders of the loud stage's meshing lines."""
        return self.mesh, 2 * self.mesh, 3 * self.mesh

    def lines(self) -> list[Line]:
        """Return every line, those of one meshing harmonic together."""
        found = [Line(order, level, 0.4) for order, level in ((1.0, 15.0), (3.0, 9.0))]
        for order, level in zip(self.harmonics(), MESH_DB, strict=True):
            found.append(Line(order, level, 1.0))
            for step, below in ((1, 8.0), (2, 13.0)):
                found += [Line(order + side * step * self.carrier, level - below, 1.3) for side in (-1, 1)]
        found += [Line(n * self.second, 15.0 - 2.0 * n, 0.8) for n in range(1, 6)]
        return found


@dataclass(frozen=True)
class Machine:
    """What differs between machines of a design; levels in dB."""

    gain_db: float
    """Of its sensor and mounting."""
    tilt_db: float
    """By how much its floor falls over the whole map."""
    floor_db: Floats
    """Response of sensor and path, ``(256, 1)`` over the rows."""
    lines_db: Floats
    """By how much each line of the design differs from the mean, ``(lines,)``."""
    resonance_db: Floats
    """So for the resonances."""
    tuning: Floats
    """Factor on the frequency of each resonance."""

    @classmethod
    def draw(cls, rng: np.random.Generator, design: Gearbox) -> Machine:
        """Draw a machine."""
        return cls(
            gain_db=rng.normal(0, 1.5),
            tilt_db=rng.uniform(5.0, 9.0),
            floor_db=0.6 * wave(rng, SIZE, 9)[:, None],
            lines_db=floats(rng.normal(0, 1.6, len(design.lines()))),
            resonance_db=floats(rng.normal(0, 1.2, len(design.resonances))),
            tuning=floats(rng.normal(1, 0.015, len(design.resonances))),
        )


@dataclass(frozen=True)
class Run:
    """What differs between runs of a machine, over the columns."""

    load_db: Floats
    """``(256,)``: drift, and in some runs a step."""
    speed: Floats
    """``(256,)`` over nominal speed."""
    slip: Floats
    """``(256,)``, error of the tachometer in orders: all lines follow it."""
    lines_db: Floats
    """``(lines, 256)``, each line's own drift."""

    @classmethod
    def draw(cls, rng: np.random.Generator, design: Gearbox) -> Run:
        """Draw a run: in two of five the load steps once."""
        step = rng.normal(0, 1.6) * (rng.random() < 0.4)
        columns = np.arange(SIZE, dtype=np.float32)
        return cls(
            load_db=floats(wave(rng, SIZE, 4) * 0.9 + step * opacity(columns - rng.uniform(40, SIZE - 40), 10)),
            speed=1 + np.float32(0.03) * wave(rng, SIZE, 4),
            slip=np.float32(0.06) * wave(rng, SIZE, 6),
            lines_db=floats([0.9 * wave(rng, SIZE, 7) for _ in design.lines()]),
        )


def power(db: Any) -> Any:
    """Return power of a level in dB."""
    return np.power(np.float32(10), np.asarray(db, np.float32) / np.float32(10))


def bell(orders: Any, width: float) -> Floats:
    """Return how much of a line or band is seen that many orders off its centre, at most 1."""
    return floats(np.exp(-0.5 * np.square(np.asarray(orders, np.float32) / np.float32(width))))


def floor_db(machine: Machine) -> Floats:
    """Return the level between the lines, ``(256, 1)``."""
    return floats(machine.gain_db + machine.floor_db - machine.tilt_db * (_PROFILE / 64 - 0.5))


def levels(
    design: Gearbox,
    machine: Machine,
    run: Run,
    *,
    moved: Floats | None = None,
    raised_db: Floats | None = None,
    added: Floats | None = None,
) -> Floats:
    """Return the noise-free level in dB, ``(256, 256)``.

    A fault moves lines by orders and raises them by dB (both ``(lines, 256)``), and adds power relative to the
    floor (``(256, 256)``).
    """
    total = np.ones((SIZE, SIZE), np.float32)
    for index, line in enumerate(design.lines()):
        own = line.level_db + machine.lines_db[index] + run.lines_db[index] + line.load * run.load_db
        place = line.order + run.slip
        if raised_db is not None:
            own = own + raised_db[index]
        if moved is not None:
            place = place + moved[index]
        total += bell(_PROFILE - place, _LINE_PX / PX_PER_ORDER) * power(own)
    for index, (order, width, level) in enumerate(design.resonances):
        place = order * machine.tuning[index] / run.speed
        total += bell(_PROFILE - place, width) * power(level + machine.resonance_db[index] + 0.7 * run.load_db)
    if added is not None:
        total += added
    return floats(floor_db(machine) + 10 * np.log10(total))


def acquire(rng: np.random.Generator, level_db: Floats) -> Bytes:
    """Return a map as it is stored, uint8: each point spreads as the mean of a few periodograms does."""
    grain = rng.standard_gamma(_LOOKS, level_db.shape, dtype=np.float32) / np.float32(_LOOKS)
    low, high = SHOWN_DB
    shown = (level_db + 10 * np.log10(grain) - low) * np.float32(255 / (high - low))
    return np.asarray(np.clip(np.rint(shown), 0, 255), np.uint8)
