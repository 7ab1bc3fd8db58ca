"""What drawing phantoms of any kind takes: float32 arrays, soft edges, smooth fields."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


def floats(values: Any) -> Floats:
    """Return ``values`` as float32."""
    return np.asarray(values, dtype=np.float32)


def opacity(depth: Any, edge: float) -> Floats:
    """Return 1 where ``depth`` is well inside, 0 well outside, one half where it is zero; it rises over ``edge``."""
    return floats(np.clip(depth * np.float32(1 / edge) + np.float32(0.5), 0, 1, dtype=np.float32))


def over(below: Floats, depth: Any, value: Any, edge: float) -> Floats:
    """Lay ``value`` over ``below`` where ``depth`` is positive, with a soft edge."""
    return floats(below + opacity(depth, edge) * (value - below))


def wave(rng: np.random.Generator, length: int, knots: int) -> Floats:
    """Return a smooth random line of ``length`` points through about ``knots`` independent ones, of unit spread."""
    values = rng.standard_normal(knots + 3)
    # Cubic B-spline weights smooth the knots; their spread is brought back to that of the knots.
    place = np.linspace(0, knots - 1e-6, length)
    start = place.astype(np.int64)
    t = place - start
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=-1) / 6
    line = sum(weights[:, k] * values[start + k] for k in range(4))
    return floats(line / 0.69)
