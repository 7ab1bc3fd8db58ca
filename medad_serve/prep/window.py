"""Grey values to the scale 0..1 on which a reader sees them."""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from medad_serve.io import Lut, Pixels
from medad_serve.spec import Percentiles, Window

FloatArray = NDArray[np.float32]
Shown = Window | Literal["file"] | None
"""How values become grey: see PrepSpec.window."""


def apply_window(values: FloatArray, window: Window) -> FloatArray:
    """Map rescaled values (HU for CT) to [0, 1] by the VOI LUT function of PS3.3 C.11.2.1.2.

    ``values`` has any shape; a new float32 array of that shape is returned. NaN stays NaN.
    """
    if window.function == "SIGMOID":  # C.11.2.1.3.1
        with np.errstate(over="ignore"):
            return np.asarray(1 / (1 + np.exp(-4 * (values - window.center) / window.width)), np.float32)
    exact = window.function == "LINEAR_EXACT"  # C.11.2.1.3.2
    center, width = (window.center, window.width) if exact else (window.center - 0.5, window.width - 1)
    if width == 0:  # LINEAR with width 1 is a step
        return np.where(np.isnan(values), values, values > center).astype(np.float32)
    return _scaled(values, center - width / 2, center + width / 2)


def _scaled(values: FloatArray, low: float, high: float) -> FloatArray:
    """Map [low, high] to [0, 1] and clip, in place on one new array."""
    out = np.multiply(values, np.float32(1 / (high - low)))
    out += np.float32(-low / (high - low))
    return np.clip(out, np.float32(0), np.float32(1), out=out)


def window_of(pixels: Pixels, window: Shown) -> Window | Lut | None:
    """Return what a file is windowed by, where the preparation leaves that to the file; None for the stored range."""
    return pixels.facts.voi if window == "file" else window


def display(pixels: Pixels, window: Shown) -> FloatArray:
    """Return ``(frames, H, W)`` in [0, 1] as a reader sees it: windowed, MONOCHROME1 turned, padding black.

    Without a window the full range of the stored type is used; ``file`` takes the file's own VOI LUT or window.
    """
    by = window_of(pixels, window)
    if isinstance(by, Lut):
        out = by(pixels.array)
        out *= np.float32(1 / (2**by.bits - 1))
        np.clip(out, np.float32(0), np.float32(1), out=out)
        out[np.isnan(pixels.array)] = np.nan
    elif by is None:
        out = _scaled(pixels.array, *pixels.facts.stored_range)
    else:
        out = apply_window(pixels.array, by)
    if pixels.inverted:
        np.subtract(np.float32(1), out, out=out)
    if pixels.padding is not None:
        black = np.zeros(out.shape[1:], np.float32)
        for frame, mask in zip(out, pixels.padding, strict=True):
            cv2.copyTo(black, mask.view(np.uint8), frame)  # half the time of an assignment by the mask
    return out


def normalized(image: FloatArray, between: Percentiles) -> FloatArray:
    """Scale an image of any shape so that two of its percentiles become 0 and 1, and clip; a flat one becomes 0."""
    low, high = np.percentile(image, [between.low, between.high])
    if not high > low:
        return image if np.isnan(low) else np.zeros_like(image)
    return _scaled(image, float(low), float(high))
