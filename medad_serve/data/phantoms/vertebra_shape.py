"""The shape of a vertebra: body, fracture and posterior elements as mm inside their surfaces."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from medad_serve.data.phantoms.drawing import Floats, floats

LEVELS = ("T11", "T12", "L1", "L2", "L3", "L4", "L5")
"""From above downward: where most fractures are, and where a crop of 128 mm holds the whole vertebra."""
_WIDTH_MM = (38.0, 40.0, 42.0, 44.0, 46.0, 49.0, 52.0)
_DEPTH_MM = (30.0, 31.0, 32.0, 33.0, 34.0, 35.0, 35.0)
_HEIGHT_MM = (23.0, 25.0, 26.5, 27.5, 28.0, 28.0, 28.0)
_FRONT = (0.95, 0.95, 0.97, 0.99, 1.0, 1.03, 1.08)
"""Anterior height by posterior one: thoracic bodies taper forward, the last lumbar one backward."""

Kind = Literal["wedge", "biconcave", "crush"]
KINDS: tuple[Kind, ...] = ("wedge", "crush", "biconcave")
_UPPER = {"wedge": 0.8, "biconcave": 0.5, "crush": 0.65}
"""Share of the loss that the upper endplate takes."""


class Point(NamedTuple):
    """Coordinates in a vertebra's own frame, mm: up, to the back, to the left."""

    z: Floats
    y: Floats
    x: Floats


@dataclass(frozen=True)
class Fracture:
    """A compression fracture after Genant: what its height loses at the worst place, 0..1."""

    kind: Kind
    loss: float
    band: float
    """mm of impacted, denser bone under the endplate."""
    density: float
    """Brightness that the band has over cancellous bone."""
    step: float
    """mm by which the anterior cortex buckles outward at its break."""

    def profile(self, v: Floats, radius: Floats) -> Floats:
        """Return how much of the loss is felt, 0..1, at ``v`` (-1 front, 1 back) and ``radius`` of the middle."""
        if self.kind == "wedge":  # the posterior wall is kept
            return floats(np.clip((0.75 - v) / 1.6, 0, 1))
        if self.kind == "biconcave":
            return floats(np.clip(1.06 - 1.6 * radius**2, 0, 1))
        return floats(np.clip(1.0 - 0.08 * (v + 1), 0, 1))


def draw_fracture(rng: np.random.Generator, kind: Kind) -> Fracture:
    """Draw a fracture of Genant's grades 1 to 3: 20 to 60 % of the height."""
    return Fracture(
        kind=kind,
        loss=float(rng.uniform(0.22, 0.6)),
        band=rng.uniform(3.0, 6.0),
        density=rng.uniform(0.06, 0.2),
        step=rng.uniform(0.5, 2.5),
    )


@dataclass(frozen=True)
class Shape:
    """One vertebra; lengths in mm."""

    half_width: float
    half_depth: float
    height: float
    """Of the posterior wall."""
    front: float
    """Anterior height by posterior one."""
    waist: float
    """Share by which the body is narrower at half its height."""
    concavity: float
    """How far each endplate sinks in its middle."""
    process: float
    """Length of the transverse processes beyond the pedicles; ribs where it is negative."""
    spinous: float
    droop: float
    """How far the spinous process hangs down."""

    @classmethod
    def draw(cls, rng: np.random.Generator, level: int, scale: float) -> Shape:
        """Draw the vertebra of ``LEVELS[level]`` for a patient of that ``scale``; levels beyond take the last's."""
        level = int(np.clip(level, 0, len(LEVELS) - 1))
        thoracic = level < 2
        return cls(
            half_width=_WIDTH_MM[level] / 2 * scale * rng.normal(1, 0.015),
            half_depth=_DEPTH_MM[level] / 2 * scale * rng.normal(1, 0.015),
            height=_HEIGHT_MM[level] * scale * rng.normal(1, 0.015),
            front=_FRONT[level] * rng.normal(1, 0.015),
            waist=rng.uniform(0.07, 0.13),
            concavity=rng.uniform(0.6, 1.8),
            process=-30.0 if thoracic else rng.uniform(18, 25) * scale,
            spinous=rng.uniform(22, 27) * scale,
            droop=rng.uniform(9, 13) if thoracic else rng.uniform(2, 5),
        )

    def plates(self, at: Point, fracture: Fracture | None) -> tuple[Floats, Floats]:
        """Return the heights of the lower and of the upper endplate at ``at`` (z is not looked at)."""
        u, v = at.x / self.half_width, at.y / self.half_depth
        radius = np.minimum(np.sqrt(u**2 + v**2), 1.0)
        high = self.height * (1 + (self.front - 1) * (1 - v) / 2)
        sink = self.concavity * (1 - radius**2)
        low, top = -high / 2 + sink, high / 2 - sink
        if fracture is not None:
            lost = fracture.loss * (top - low) * fracture.profile(floats(v), floats(radius))
            # Bone breaks unevenly: the sunken plate has hollows.
            lost = lost * (1 + 0.06 * np.sin(0.5 * at.x + 1.0) * np.cos(0.4 * at.y))
            upper = _UPPER[fracture.kind]
            top, low = top - upper * lost, low + (1 - upper) * lost
        return floats(low), floats(top)

    def body(self, at: Point, fracture: Fracture | None = None) -> Floats:
        """Return mm inside the vertebral body (negative outside)."""
        low, top = self.plates(at, fracture)
        t = np.clip((at.z - (low + top) / 2) / np.maximum((top - low) / 2, 1), -1.2, 1.2)
        sides = 1 - self.waist * np.maximum(1 - t**2, 0)
        if fracture is not None:  # crushed bone gives way sideways, the front most
            front = np.clip(-at.y / self.half_depth, 0, 1) ** 2
            sides = sides + (0.12 * fracture.loss + fracture.step / self.half_depth * front) * np.exp(
                -(((t - 0.45) / 0.3) ** 2)
            )
        lateral = self._sideways(at, floats(sides))
        return floats(np.minimum(np.minimum(lateral, top - at.z), at.z - low))

    def disc(self, at: Point, gap: float) -> Floats:
        """Return mm inside body and discs above and below, taken together."""
        return floats(np.minimum(self._sideways(at, np.float32(1.03)), self.height / 2 + gap - np.abs(at.z)))

    def _sideways(self, at: Point, sides: Floats | np.float32) -> Floats:
        """Return mm inside the outline, a superellipse hollow behind, along the ray from the axis."""
        u = at.x / self.half_width
        behind = np.where(at.y > 0, 0.86 + 0.16 * np.minimum(u**2, 1), 1)
        v = at.y / (self.half_depth * behind)
        level = ((np.abs(u) ** 2.3 + np.abs(v) ** 2.3) ** np.float32(1 / 2.3)) / sides
        return floats(np.hypot(at.x, at.y) * (1 / (level + 1e-3) - 1))

    def posterior(self) -> Iterator[Rod]:
        """Yield the rods of the arch and its processes, of the left half: the right one mirrors it."""
        wall, half = self.half_depth, self.half_width
        inner = 0.62 * half  # of the pedicles, from the middle
        up = 0.18 * self.height
        pillar = inner + 3
        yield Rod((up, wall - 5, inner), (up, wall + 11, pillar), 4.8, 4.4, 1.5)
        yield Rod(
            (0.62 * self.height, wall + 13, pillar + 1), (-0.2 * self.height, wall + 15, pillar - 1), 5.2, 5.6, 1.0
        )
        yield Rod(
            (-0.2 * self.height, wall + 15, pillar - 1), (-0.72 * self.height, wall + 19, pillar - 3), 5.6, 4.6, 1.0
        )
        arch = wall + 24
        yield Rod((-0.12 * self.height, wall + 15, pillar - 2), (-0.3 * self.height, arch, 1), 3.6, 3.4, 2.4)
        end = -0.3 * self.height - self.droop
        yield Rod((-0.3 * self.height, arch, 0), (end, arch + self.spinous, 0), 2.8, 3.6, 2.8)
        if self.process > 0:
            yield Rod((up - 2, wall + 11, pillar), (up - 1, wall + 15, pillar + self.process), 4.0, 2.8, 1.5)
        else:  # a rib leaves the body's side, backward and down
            yield Rod((up, wall - 7, half + 1), (up - 3, wall + 12, half + 22), 4.0, 3.6, 1.4)
            yield Rod((up - 3, wall + 12, half + 22), (up - 16, wall + 16, half + 48), 3.6, 3.6, 1.6)
            yield Rod((up - 2, wall + 11, pillar), (up, wall + 17, pillar + 9), 3.6, 2.8, 1.3)


class Rod(NamedTuple):
    """A tapering rod between two points (z, y, x), of two radii, its cross-section ``tall`` times as high as wide."""

    start: tuple[float, float, float]
    end: tuple[float, float, float]
    radius: float
    last: float
    tall: float

    def depth(self, at: Point) -> Floats:
        """Return mm inside it, about."""
        (z0, y0, x0), (z1, y1, x1) = self.start, self.end
        across = np.float32(1 / self.tall)
        dz, dy, dx = (z1 - z0) * across, y1 - y0, x1 - x0
        z, y, x = (at.z - z0) * across, at.y - y0, at.x - x0
        t = np.clip((z * dz + y * dy + x * dx) / np.float32(dz**2 + dy**2 + dx**2), 0, 1)
        away = np.sqrt((z - t * dz) ** 2 + (y - t * dy) ** 2 + (x - t * dx) ** 2)
        return floats(self.radius + t * (self.last - self.radius) - away)

    def reach(self) -> tuple[tuple[float, float], ...]:
        """Return the least and the greatest z, y and x that it reaches."""
        wide = max(self.radius, self.last) + 1.5
        swell = (wide * self.tall, wide, wide)
        return tuple(
            (min(a, b) - more, max(a, b) + more) for a, b, more in zip(self.start, self.end, swell, strict=True)
        )
