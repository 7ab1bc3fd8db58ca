"""The box of an image's largest bright object: the head, without table, head holder, tubes and air."""

from __future__ import annotations

from math import ceil

import cv2
import numpy as np
from numpy.typing import NDArray

from medad_serve.spec import Foreground

WORKING_SIDE = 256
"""Pixels of the longer side on which the object is looked for; its averaging also quiets noise."""
THIN = 5
"""Pixels at that size: what is thinner is taken off (table shells, tubes, the straps that join them to a head)."""


def _outline(mask: NDArray[np.uint8]) -> tuple[int, int, int, int] | None:
    """Return (left, top, width, height) of the object that encloses most, holes counted as its own."""
    # A skull around a dark brain encloses more than any table; a table's hollow shell counts as what it encloses,
    # which is why the shells are taken off first.
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    if not outlines:
        return None
    left, top, width, height = cv2.boundingRect(max(outlines, key=cv2.contourArea))
    return left, top, width, height


def _span(start: float, length: float, side: int, limit: int) -> tuple[int, int]:
    """Return (first, size) of ``side`` pixels around a stretch, moved or cut to lie within ``limit``."""
    side = min(side, limit)
    first = round(start + length / 2 - side / 2)
    return min(max(first, 0), limit - side), side


def foreground_box(image: NDArray[np.float32], spec: Foreground) -> tuple[int, int, int, int]:
    """Return (top, left, height, width) of the square around the largest bright object, margin included.

    ``image`` is float32 ``(H, W)`` on the windowed scale 0..1. The square is moved into the image; where the image
    is narrower than the square, the box is as wide as the image. Without any bright object it is the whole image.
    """
    rows, columns = image.shape
    scale = max(1, ceil(max(rows, columns) / WORKING_SIDE))
    small = cv2.resize(image, (ceil(columns / scale), ceil(rows / scale)), interpolation=cv2.INTER_AREA)
    mask = (small > spec.threshold).astype(np.uint8)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (THIN, THIN))
    thick = np.asarray(cv2.morphologyEx(mask, cv2.MORPH_OPEN, disc), np.uint8)
    found = _outline(thick) or _outline(mask)
    if found is None:
        return 0, 0, rows, columns
    down, across = rows / small.shape[0], columns / small.shape[1]
    left, top, width, height = found[0] * across, found[1] * down, found[2] * across, found[3] * down
    side = max(1, round(max(height, width) * (1 + 2 * spec.margin)))
    first_row, high = _span(top, height, side, rows)
    first_column, wide = _span(left, width, side, columns)
    return first_row, first_column, high, wide
