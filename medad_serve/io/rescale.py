"""From stored values to measured ones: the modality transform and pixel padding."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from medad_serve.errors import InputError
from medad_serve.io.groups import group_items
from medad_serve.io.layout import Layout
from medad_serve.io.lut import read_lut
from medad_serve.io.tags import DAMAGED, label, number, numbers

Rescaled = tuple[NDArray[np.float32], tuple[float, float]]
"""Values, and the range that the stored type spans once rescaled."""

_LARGEST = float(np.finfo(np.float32).max)


def rescale(stored: NDArray[Any], ds: Dataset, layout: Layout) -> Rescaled:
    """Apply the Modality LUT, else slope and intercept per frame (PS3.3 C.11.1, C.7.6.16.2.9).

    Absent tags mean slope 1, intercept 0.

    Raises:
        InputError: 422, the transform maps onto one value or beyond float32.
    """
    if (lut := read_lut(ds, "ModalityLUTSequence", layout)) is not None:
        low, high = float(lut.entries.min()), float(lut.entries.max())
        return lut(stored), (low, high if high > low else low + 1.0)
    pairs = _slopes(ds, layout.frames)
    low, high = _type_range(stored, layout)
    ends = [end * slope + intercept for slope, intercept in pairs for end in (low, high)]
    span = min(ends), max(ends)
    if not all(map(math.isfinite, ends)) or max(map(abs, span)) > _LARGEST:
        fault = f"{label('RescaleSlope')} or {label('RescaleIntercept')} leads beyond finite values"
        raise InputError(422, fault, DAMAGED)
    # float32 holds integers of up to 24 bits; wider ones are rescaled in float64 and rounded once
    wide = layout.is_float or layout.bits_stored > 24
    values = stored.astype(np.float64 if wide else np.float32)
    for frames, (slope, intercept) in zip(_per_frame(values, len(pairs)), pairs, strict=True):
        if slope == 0:
            raise InputError(422, f"{label('RescaleSlope')} is 0: all pixels would be equal", DAMAGED)
        if slope != 1:
            frames *= slope
        if intercept != 0:
            frames += intercept
    return values.astype(np.float32, copy=False), span


def linear(stored: NDArray[Any], slope: float, intercept: float) -> Rescaled:
    """Rescale bool, integer or floating point values of a file that is no DICOM.

    The range is that of the integer type, rescaled. A float type's own says nothing: it is 0..1 where all
    values lie within, as of what was windowed before, else from the smallest to the largest; NaN stays.

    Raises:
        InputError: 422, values that are infinite, beyond float32, or made equal by the rescale.
    """
    whole = stored.dtype.kind in "biu"
    with np.errstate(all="ignore"):  # what overflows is refused below
        if (slope, intercept) == (1, 0):
            values = stored.astype(np.float32, order="C")
        else:
            wide = stored.dtype.itemsize >= (4 if whole else 8)
            scaled: NDArray[Any] = stored.astype(np.float64 if wide else np.float32, order="C")
            scaled *= slope
            scaled += intercept
            values = scaled.astype(np.float32, copy=False)
    if whole:
        ends = np.iinfo(stored.dtype) if stored.dtype.kind != "b" else None
        low, high = (float(ends.min), float(ends.max)) if ends else (0.0, 1.0)
        low, high = sorted((low * slope + intercept, high * slope + intercept))
    else:
        low, high = float(np.fmin.reduce(values, axis=None)), float(np.fmax.reduce(values, axis=None))
    if math.isnan(low) or (not whole and low >= 0 and high <= 1):
        return values, (0.0, 1.0)
    if max(abs(low), abs(high)) > _LARGEST:
        raise InputError(422, "the values reach beyond finite numbers", "Export it again with finite values")
    if whole and not np.float32(high) > np.float32(low):
        raise InputError(422, "the rescale of the file makes all values equal", "Export it again from its source")
    return values, (low, high if high > low else low + max(1.0, abs(low)))


def _per_frame(values: NDArray[Any], transforms: int) -> list[NDArray[Any]]:
    return [values] if transforms == 1 else [values[i] for i in range(transforms)]


def _type_range(stored: NDArray[Any], layout: Layout) -> tuple[float, float]:
    if not layout.is_float:
        return layout.stored_range
    low, high = float(stored.min()), float(stored.max())  # a float type's own range says nothing
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InputError(422, f"{label(layout.keyword)} holds values that are not finite", DAMAGED)
    return low, high if high > low else low + 1.0


def _slopes(ds: Dataset, frames: int) -> list[tuple[float, float]]:
    """Return (slope, intercept) once where all frames share it, else for every frame."""
    items = group_items(ds, "PixelValueTransformationSequence", frames)
    pairs = [(number(i, "RescaleSlope", 1.0), number(i, "RescaleIntercept", 0.0)) for i in items or [ds]]
    return pairs[:1] if len(set(pairs)) == 1 else pairs


def padding_mask(raw: NDArray[Any], stored: NDArray[Any], ds: Dataset, layout: Layout) -> NDArray[Any] | None:
    """Mark the pixels of Pixel Padding Value, or of the range to its limit (PS3.3 C.7.5.1.1.2).

    Both ends are included, in either order. The value is read as the stored type, whatever VR it was
    written with: 63536 means -2000 in signed 16-bit data. ``raw`` still has its unused bits: a padding
    value that Bits Stored cannot hold is looked for there, and never folded onto a measured value.
    """
    value = numbers(ds, "PixelPaddingValue")
    if not value or layout.photometric == "PALETTE COLOR":
        return None
    limit = numbers(ds, "PixelPaddingRangeLimit") or value
    ends = [_as_stored(v, layout) for v in (value[0], limit[0])]
    low, high = min(ends), max(ends)
    smallest, largest = layout.stored_range
    values = stored if smallest <= low and high <= largest else raw
    info = np.iinfo(values.dtype)
    if high < info.min or low > info.max:
        return None
    if low == high:
        mask = values == values.dtype.type(low)
    else:
        mask = (values >= max(low, info.min)) & (values <= min(high, info.max))
    return mask if mask.any() else None


def _as_stored(value: float, layout: Layout) -> int:
    span = 1 << layout.bits_allocated
    if not math.isfinite(value):
        raise InputError(400, f"{label('PixelPaddingValue')} is not a number", DAMAGED)
    number_ = int(value)
    if layout.signed and layout.bits_allocated == 8 and 2**15 <= number_ < 2**16:  # the element has 16 bits
        number_ -= 2**16
    if layout.signed and span // 2 <= number_ < span:
        return number_ - span
    return number_ + span if not layout.signed and -span // 2 <= number_ < 0 else number_
