"""Whether prepared inputs look like those that a model was calibrated on.

Seven plain statistics of each item; a range of each over the calibration's healthy items, widened. Which
statistics, and by how much, was tried on head CT, chest films and tiles, over random splits by patient: of
held-out normals 0 to 2.4 % lie outside with 20 to calibrate on, 0 to 1.5 % with 40, 0.1 to 0.9 % with 130; of
heads and chests that are inverted, noisy, half as large or darkened more than 90 % do, of those turned by 90
degrees 8 in 10. One upside down stays unnoticed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from medad_serve.prep.window import FloatArray
from medad_serve.spec import InputRange, PrepSpec

PLAIN = ("brightness", "contrast", "black", "white", "sharpness", "center")
LAYOUT = "layout"
GRID = 8
"""Rows and columns of the coarse picture that layouts are compared by."""
TAIL = 0.01
"""Share of the calibration's items that may lie beyond either end of the range, before it is widened."""
MARGIN, FEW = 0.75, 5.0
"""The range is widened at either end by its width times ``MARGIN + FEW / n``: a range of few items is too narrow."""
FEWEST = 10
"""Items without which no range is stated."""
LEAST = 0.01
"""By which it is widened besides, on the scale 0..1: items may all be equal in a statistic."""
_EDGE = 0.02
_FLAT = 1e-4
"""Length below which a coarse picture is that of a flat image."""

Floats = NDArray[np.float64]
Statistics = tuple[Floats, Floats]
"""Plain statistics ``(N, 6)``, and coarse pictures ``(N, 64)`` of mean 0 and length 1 (0 where an item is flat)."""


def measure(tensor: FloatArray, prep: PrepSpec) -> Statistics:
    """Measure prepared items ``(N, C, *S)``, on the windowed scale 0..1 whatever the model's own."""
    shown = _shown(tensor, prep)
    plain = np.array([_plain(item) for item in shown]).reshape(-1, len(PLAIN))
    return plain, np.array([_picture(item) for item in shown]).reshape(-1, GRID * GRID)


def _shown(tensor: FloatArray, prep: PrepSpec) -> FloatArray:
    low, high = prep.values
    return (tensor[:, 0] - np.float32(low)) * np.float32(1 / (high - low))


def _plain(item: FloatArray) -> list[float]:
    """Return the plain statistics of ``(*S)``, by OpenCV: numpy takes twice as long over a small image."""
    rows, columns = item.shape[-2:]
    inner = item[..., rows // 4 : rows - rows // 4, columns // 4 : columns - columns // 4]
    mean, deviation = (float(value[0, 0]) for value in cv2.meanStdDev(_flat(item)))
    steps = _step(item[..., 1:, :], item[..., :-1, :]) + _step(item[..., 1:], item[..., :-1])
    black, white = (float(np.count_nonzero(part)) / item.size for part in (item <= _EDGE, item >= 1 - _EDGE))
    return [mean, deviation, black, white, steps, cv2.mean(_flat(inner))[0] - mean]


def _flat(item: FloatArray) -> FloatArray:
    """Return an image or volume as one image; OpenCV would take a third axis for channels."""
    return item.reshape(-1, item.shape[-1])


def _step(item: FloatArray, neighbors: FloatArray) -> float:
    """Return the mean absolute difference, 0 where there is nothing to compare."""
    return float(cv2.norm(_flat(item), _flat(neighbors), cv2.NORM_L1)) / item.size if item.size else 0.0


def _picture(item: FloatArray) -> Floats:
    """Return the coarse picture of ``(*S)``; a volume is averaged along its depth."""
    flat = item.mean(axis=0) if item.ndim == 3 else item
    small = cv2.resize(np.ascontiguousarray(flat), (GRID, GRID), interpolation=cv2.INTER_AREA)
    centered: Floats = small.ravel().astype(np.float64) - cv2.mean(small)[0]
    length = math.sqrt(centered @ centered)
    return centered / length if length > _FLAT else np.zeros_like(centered)


def _unit(pictures: Floats) -> Floats:
    pictures = pictures - pictures.mean(axis=-1, keepdims=True)
    length = np.linalg.norm(pictures, axis=-1, keepdims=True)
    return np.where(length > _FLAT, pictures / np.maximum(length, _FLAT), 0.0)


def _apart(picture: Floats, other: Floats) -> float:
    """Return how far a coarse picture lies from another: 0 alike, 2 the negative."""
    between = picture - other
    return math.sqrt(between @ between)


def input_range(measured: Sequence[Statistics]) -> InputRange | None:
    """Return the widened range of every statistic over healthy items, None where they are too few.

    Each layout is held against the mean of the others'.
    """
    if sum(len(values) for values, _ in measured) < FEWEST:
        return None
    plain = np.concatenate([values for values, _ in measured])
    pictures = np.concatenate([pictures for _, pictures in measured])
    total = pictures.sum(axis=0)
    layouts = [_apart(picture, others) for picture, others in zip(pictures, _unit(total - pictures), strict=True)]
    values = np.column_stack([plain, layouts])
    low, high = np.quantile(values, [TAIL, 1 - TAIL], axis=0)
    margin = (high - low) * (MARGIN + FEW / len(values)) + LEAST
    ranges = zip((*PLAIN, LAYOUT), (low - margin).tolist(), (high + margin).tolist(), strict=True)
    return InputRange(
        n=len(values),
        layout=tuple(_unit(total).tolist()),
        ranges={name: (least, most) for name, least, most in ranges},
    )


def unfamiliar(tensor: FloatArray, prep: PrepSpec, known: InputRange | None) -> tuple[str, ...]:
    """Return a warning where items lie far outside the calibration's, naming by what; () where all are within."""
    if known is None:
        return ()
    layout = np.array(known.layout)
    found = [_outside([*_plain(item), _apart(_picture(item), layout)], known) for item in _shown(tensor, prep)]
    far = sum(map(bool, found))
    if not far:
        return ()
    by = ", ".join(name for name in (*PLAIN, LAYOUT) if any(name in names for names in found))
    what = f"the {prep.unit} lies" if len(tensor) == 1 else f"{far} of {len(tensor)} {prep.unit}s lie"
    return (f"{what} far outside the inputs that the model was calibrated on, by {by}: the score may mean little",)


def _outside(values: Sequence[float], known: InputRange) -> list[str]:
    """Return the names of the statistics that lie outside their range."""
    ranges = ((name, value, *known.ranges[name]) for name, value in zip((*PLAIN, LAYOUT), values, strict=True))
    return [name for name, value, low, high in ranges if not low <= value <= high]
