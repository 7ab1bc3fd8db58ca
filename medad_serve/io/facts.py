"""What else a DICOM file says of its pixels: plane, spacing, windows; nothing that names a person."""

from __future__ import annotations

import hashlib
import math

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import UID

from medad_serve.errors import InputError
from medad_serve.io.groups import group_items
from medad_serve.io.layout import Layout
from medad_serve.io.pixels import Facts
from medad_serve.io.tags import code, numbers, uid

Triple = tuple[float, float, float]


def read_facts(
    ds: Dataset, layout: Layout, syntax: UID, stored_range: tuple[float, float], notes: tuple[str, ...]
) -> Facts:
    """Collect the facts; an unreadable optional tag counts as absent."""
    position, normal = _plane(ds, layout.frames)
    series = uid(ds, "SeriesInstanceUID")
    return Facts(
        modality=code(ds, "Modality"),
        body_part=code(ds, "BodyPartExamined"),
        photometric=layout.photometric,
        transfer_syntax=str(syntax),
        windows=_windows(ds, layout.frames),
        stored_range=stored_range,
        position=position,
        normal=normal,
        series=hashlib.sha256(series.encode()).hexdigest()[:16] if series else "",
        notes=notes,
    )


def spacing(ds: Dataset, frames: int) -> tuple[float, float] | None:
    """Return (between rows, between columns) in mm of Pixel Spacing, else of Imager Pixel Spacing.

    Imager Pixel Spacing (projection radiography) is that of the detector, not corrected for magnification.
    """
    for keyword in ("PixelSpacing", "ImagerPixelSpacing"):
        values = _optional(_macro(ds, "PixelMeasuresSequence", frames), keyword) or _optional(ds, keyword)
        if len(values) == 2 and all(math.isfinite(v) and v > 0 for v in values):
            return values[0], values[1]
    return None


def _windows(ds: Dataset, frames: int) -> tuple[tuple[float, float], ...]:
    """Pair centers with widths in file order; a width that is no width (PS3.3 C.11.2.1.2) is refused."""
    source = _macro(ds, "FrameVOILUTSequence", frames)
    pairs = tuple(zip(_optional(source, "WindowCenter"), _optional(source, "WindowWidth"), strict=False))
    if any(width <= 0 for _, width in pairs):
        raise InputError(422, "(0028,1051) Window Width must be greater than 0", "Correct or remove the window")
    return tuple((c, w) for c, w in pairs if math.isfinite(c) and math.isfinite(w))


def _plane(ds: Dataset, frames: int) -> tuple[float | None, Triple | None]:
    """Return the place along the normal and the normal (PS3.3 C.7.6.2.1.1), of the first frame."""
    position = _optional(_macro(ds, "PlanePositionSequence", frames), "ImagePositionPatient")
    orientation = _optional(_macro(ds, "PlaneOrientationSequence", frames), "ImageOrientationPatient")
    if len(position) != 3 or len(orientation) != 6 or not all(map(math.isfinite, position + orientation)):
        return None, None
    a, b, c, d, e, f = orientation
    normal = (b * f - c * e, c * d - a * f, a * e - b * d)
    length = math.hypot(*normal)
    if not length > 1e-6:
        return None, None
    x, y, z = (n / length for n in normal)
    along = x * position[0] + y * position[1] + z * position[2]
    # + 0.0 turns -0.0 into 0.0, so that equal planes compare equal
    return float(np.float64(along)), (round(x, 3) + 0.0, round(y, 3) + 0.0, round(z, 3) + 0.0)


def _macro(ds: Dataset, macro: str, frames: int) -> Dataset:
    try:
        return next(iter(group_items(ds, macro, frames)), ds)
    except InputError:
        return ds


def _optional(ds: Dataset, keyword: str) -> tuple[float, ...]:
    try:
        return numbers(ds, keyword)
    except InputError:
        return ()
