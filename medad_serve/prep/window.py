"""Grey values to the scale 0..1 on which a reader sees them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from medad_serve.io import Lut, Pixels
from medad_serve.spec import Percentiles, Window

FloatArray = NDArray[np.float32]
Shown = Window | Literal["file"] | None
"""How values become grey: see PrepSpec.window."""


FAR = 16
"""A window so many times its width away from zero is far: a mean of its values, rounded, would tell on the scale."""
ROWS = 128
"""That are filled at a time, from an image that is kept."""
_HUGE = 1e30
"""From here on sums of float32 may overflow."""


@dataclass(frozen=True)
class Grey:
    """Values cut to what a reader can tell apart, and the two that are seen as black (0) and white (1).

    An image that is to shrink is cut, resized, then scaled: but for rounding the mean of an area is the same, and two
    passes over the whole of it are saved. In a window that is far from zero the values are scaled already.
    """

    values: FloatArray
    """Of any shape, a copy."""
    black: float
    white: float

    def scaled(self, values: FloatArray) -> FloatArray:
        """Map values made of these onto [0, 1], in place; NaN stays NaN."""
        if (self.black, self.white) != (0, 1):
            scale = np.float32(1 / (self.white - self.black))
            values *= scale
            values -= np.float32(self.black) * scale  # so rounded, black is 0 exactly
        # weights of an area that do not sum to 1 exactly leave the scale by a rounding
        return np.clip(values, np.float32(0), np.float32(1), out=values)

    def shown(self) -> FloatArray:
        """Return the values themselves on [0, 1], in place."""
        return self.scaled(self.values)


def apply_window(values: FloatArray, window: Window) -> FloatArray:
    """Map rescaled values (HU for CT) to [0, 1] by the VOI LUT function of PS3.3 C.11.2.1.2.

    ``values`` has any shape; a new float32 array of that shape is returned. NaN stays NaN.
    """
    return _windowed(values, window).shown()


def _windowed(values: FloatArray, window: Window) -> Grey:
    if window.function == "SIGMOID":  # C.11.2.1.3.1
        with np.errstate(over="ignore"):
            curve = 1 / (1 + np.exp(-4 * (values - window.center) / window.width))
        return Grey(np.asarray(curve, np.float32), 0, 1)
    exact = window.function == "LINEAR_EXACT"  # C.11.2.1.3.2
    center, width = (window.center, window.width) if exact else (window.center - 0.5, window.width - 1)
    if width == 0:  # LINEAR with width 1 is a step
        return Grey(np.where(np.isnan(values), values, values > center).astype(np.float32), 0, 1)
    return _cut(values, center - width / 2, center + width / 2)


def _cut(values: FloatArray, low: float, high: float) -> Grey:
    largest = max(abs(low), abs(high))
    if largest > _HUGE or largest > FAR * (high - low):
        out = values * np.float32(0.5)  # of halves no difference overflows
        out -= np.float32(low / 2)
        out *= np.float32(2 / (high - low))
        return Grey(np.clip(out, np.float32(0), np.float32(1), out=out), 0, 1)
    return Grey(np.clip(values, np.float32(low), np.float32(high)), low, high)


def window_of(pixels: Pixels, window: Shown) -> Window | Lut | None:
    """Return what a file is windowed by, where the preparation leaves that to the file; None for the stored range."""
    return pixels.facts.voi if window == "file" else window


def cut(pixels: Pixels, window: Shown) -> Grey:
    """Return ``(frames, H, W)`` cut to the window: MONOCHROME1 is white where it is low, padding black.

    Without a window the full range of the stored type is used; ``file`` takes the file's own VOI LUT or window.
    """
    by = window_of(pixels, window)
    if isinstance(by, Lut):
        found = _cut(by(pixels.array), 0, 2**by.bits - 1)
        found.values[np.isnan(pixels.array)] = np.nan
    elif by is None:
        found = _cut(pixels.array, *pixels.facts.stored_range)
    else:
        found = _windowed(pixels.array, by)
    if pixels.inverted:
        found = Grey(found.values, black=found.white, white=found.black)
    if pixels.padding is not None:
        for frame, mask in zip(found.values, pixels.padding, strict=True):
            _fill(frame, mask, found.black)
    return found


def _fill(frame: FloatArray, mask: NDArray[np.bool_], value: float) -> None:
    """Set ``frame (H, W)`` to a value where ``mask`` is: by OpenCV in half the time of an assignment by the mask."""
    rows, columns = frame.shape
    plain = _plain(min(rows, ROWS), columns, value)
    for start in range(0, rows, ROWS):
        part = frame[start : start + ROWS]
        cv2.copyTo(plain[: len(part)], mask[start : start + ROWS].view(np.uint8), part)


@lru_cache(maxsize=4)
def _plain(rows: int, columns: int, value: float) -> FloatArray:
    """Return an image of one value, kept: strips and slices are filled from the same."""
    return np.full((rows, columns), value, np.float32)


def display(pixels: Pixels, window: Shown) -> FloatArray:
    """Return ``(frames, H, W)`` in [0, 1] as a reader sees it: see :func:`cut`."""
    return cut(pixels, window).shown()


def normalized(image: FloatArray, between: Percentiles) -> FloatArray:
    """Scale an image of any shape so that two of its percentiles become 0 and 1, and clip; a flat one becomes 0."""
    low, high = np.percentile(image, [between.low, between.high])
    if not high > low:
        return image if np.isnan(low) else np.zeros_like(image)
    return _cut(image, float(low), float(high)).shown()
