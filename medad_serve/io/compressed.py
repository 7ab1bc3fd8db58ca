"""Compressed frames: what their own headers say, compared with the tags before a decoder allocates by it."""

from __future__ import annotations

from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.uid import UID, RLELossless

from medad_serve.errors import InputError
from medad_serve.io.codestream import frame_size
from medad_serve.io.imagecodecs_plugin import DECODER_DEPENDENCIES
from medad_serve.io.layout import Layout, damaged
from medad_serve.io.tags import DAMAGED, holds, label


def check_frames(ds: Dataset, layout: Layout, syntax: UID) -> tuple[str, ...]:
    """Check the count, completeness and declared size of every frame, and return notes.

    Raises:
        InputError: 400 frames missing or contradicting the tags, 415 transfer syntax not supported.
    """
    if syntax not in DECODER_DEPENDENCIES:
        hint = "Export it uncompressed (Explicit VR Little Endian) or as JPEG 2000"
        name = syntax.name if syntax.is_transfer_syntax else "unknown"
        raise InputError(415, f"(0002,0010) Transfer Syntax UID is not supported: {name}", hint)
    found = 0
    with damaged(f"{label('PixelData')} holds no compressed frames"):
        data = ds[layout.keyword].value
        for frame in generate_frames(data, number_of_frames=layout.frames, extended_offsets=_offsets(ds)):
            found += 1
            if found <= layout.frames and syntax != RLELossless:
                _check_frame(frame, layout)
    if found < layout.frames:
        fault = f"{label('PixelData')} holds fewer frames than {label('NumberOfFrames')}"
        raise InputError(400, fault, "The file is cut short: send it whole")
    excess = found - layout.frames
    return (f"frames beyond {label('NumberOfFrames')} left out: {excess}",) if excess else ()


def _offsets(ds: Dataset) -> tuple[bytes, bytes] | None:
    if holds(ds, "ExtendedOffsetTable") and holds(ds, "ExtendedOffsetTableLengths"):
        return ds["ExtendedOffsetTable"].value, ds["ExtendedOffsetTableLengths"].value
    return None


def _check_frame(frame: bytes, layout: Layout) -> None:
    size = frame_size(frame)
    if size is None:
        raise InputError(400, f"{label('PixelData')} holds a compressed frame without a header", DAMAGED)
    if frame[:2] == b"\xff\xd8" and b"\xff\xd9" not in frame:
        # libjpeg would fill the missing part with grey and say nothing
        raise InputError(400, "a compressed frame ends early", "The file is cut short: send it whole")
    if size[:3] != (layout.rows, layout.columns, layout.samples):
        fault = f"a compressed frame's own size contradicts {label('Rows')} or {label('Columns')}"
        raise InputError(400, fault, DAMAGED)
    if size.precision > 32 or (size.precision > layout.bits_allocated and layout.bits_allocated > 1):
        fault = f"a compressed frame's precision contradicts {label('BitsAllocated')}"
        raise InputError(400, fault, DAMAGED)
