"""Whether prepared inputs look like those that a model was calibrated on.

Seven plain statistics of each item; a range of each over the calibration's healthy items, widened. Which
statistics, and by how much, was tried on head CT, chest films and tiles, over random splits by patient: of
held-out normals 0 to 2.4 % lie outside with 20 to calibrate on, 0 to 1.5 % with 40, 0.1 to 0.9 % with 130; of
heads and chests that are inverted, noisy, half as large or darkened more than 90 % do, of those turned by 90
degrees 8 in 10. One upside down stays unnoticed.
"""

from __future__ import annotations

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

Statistics = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Plain statistics ``(N, 6)``, and coarse pictures ``(N, 64)`` of mean 0 and length 1 (0 where an item is flat)."""


def measure(tensor: FloatArray, prep: PrepSpec) -> Statistics:
    """Measure prepared items ``(N, C, *S)``, on the windowed scale 0..1 whatever the model's own."""
    low, high = prep.values
    shown = (tensor[:, 0] - np.float32(low)) * np.float32(1 / (high - low))
    return np.array([_plain(item) for item in shown]).reshape(-1, len(PLAIN)), _coarse(shown)


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


def _coarse(shown: FloatArray) -> NDArray[np.float64]:
    flat = shown.mean(axis=1) if shown.ndim == 4 else shown
    small = [cv2.resize(np.ascontiguousarray(each), (GRID, GRID), interpolation=cv2.INTER_AREA) for each in flat]
    return _unit(np.array(small, np.float64).reshape(-1, GRID * GRID))


def _unit(pictures: NDArray[np.float64]) -> NDArray[np.float64]:
    pictures = pictures - pictures.mean(axis=-1, keepdims=True)
    length = np.linalg.norm(pictures, axis=-1, keepdims=True)
    return np.where(length > 1e-4, pictures / np.maximum(length, 1e-4), 0.0)


def _apart(pictures: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how far coarse pictures lie from others: 0 alike, 2 the negative."""
    return np.asarray(np.linalg.norm(pictures - others, axis=-1), np.float64)


def input_range(measured: Sequence[Statistics]) -> InputRange | None:
    """Return the widened range of every statistic over healthy items, None where they are too few.

    Each layout is held against the mean of the others'.
    """
    if sum(len(values) for values, _ in measured) < FEWEST:
        return None
    plain = np.concatenate([values for values, _ in measured])
    pictures = np.concatenate([pictures for _, pictures in measured])
    total = pictures.sum(axis=0)
    values = np.column_stack([plain, _apart(pictures, _unit(total - pictures))])
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
    plain, pictures = measure(tensor, prep)
    values = np.column_stack([plain, _apart(pictures, np.array(known.layout))])
    low, high = np.array([known.ranges[name] for name in (*PLAIN, LAYOUT)]).T
    outside = (values < low) | (values > high)
    far = int(outside.any(axis=1).sum())
    if not far:
        return ()
    by = ", ".join(name for name, is_out in zip((*PLAIN, LAYOUT), outside.any(axis=0), strict=True) if is_out)
    what = f"the {prep.unit} lies" if len(tensor) == 1 else f"{far} of {len(tensor)} {prep.unit}s lie"
    return (f"{what} far outside the inputs that the model was calibrated on, by {by}: the score may mean little",)
