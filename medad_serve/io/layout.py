"""How the samples of a DICOM image are laid out, by its tags, checked before anything is allocated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from medad_serve.errors import InputError
from medad_serve.io.limits import Limits
from medad_serve.io.tags import DAMAGED, code, holds, label, whole

GREY = ("MONOCHROME1", "MONOCHROME2")
COLOR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "PALETTE COLOR")
_FLOATS = {"FloatPixelData": 32, "DoubleFloatPixelData": 64}


@dataclass(frozen=True)
class Layout:
    """The Image Pixel module (PS3.3 C.7.6.3), as far as samples are laid out by it."""

    keyword: str
    rows: int
    columns: int
    frames: int
    samples: int
    photometric: str
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool

    @property
    def is_float(self) -> bool:
        """Whether samples are floating point."""
        return self.keyword != "PixelData"

    @property
    def dtype(self) -> np.dtype[Any]:
        """Little-endian container of one sample."""
        kind = "f" if self.is_float else "i" if self.signed else "u"
        return np.dtype(f"<{kind}{max(self.bits_allocated // 8, 1)}")

    @property
    def stored_range(self) -> tuple[int, int]:
        """Smallest and largest integer that (0028,0101) Bits Stored can hold."""
        span = 1 << self.bits_stored
        return (-span // 2, span // 2 - 1) if self.signed else (0, span - 1)


@contextmanager
def damaged(message: str, hint: str = DAMAGED) -> Iterator[None]:
    """Turn whatever pydicom or a codec raises into a 400; its own text is dropped, it may quote values."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception:
        raise InputError(400, message, hint) from None


def read_layout(ds: Dataset, limits: Limits) -> Layout:
    """Read and check the layout, refusing by ``limits`` before anything is allocated.

    Raises:
        InputError: 400 tags missing or contradictory, 413 too large, 415 photometric interpretation not
            supported, 422 no pixel data.
    """
    keyword = next((k for k in ("PixelData", *_FLOATS) if holds(ds, k)), "")
    if not keyword:
        hint = "Send a whole image: reports and directories hold none, a file cut short has lost them"
        raise InputError(422, f"the DICOM file holds no {label('PixelData')}", hint)
    allocated = _FLOATS.get(keyword) or whole(ds, "BitsAllocated")
    is_float = keyword in _FLOATS
    bits_stored = allocated if is_float else whole(ds, "BitsStored")
    representation = 0 if is_float else whole(ds, "PixelRepresentation")
    if representation not in (0, 1):
        raise InputError(400, f"{label('PixelRepresentation')} is neither 0 nor 1", DAMAGED)
    if not holds(ds, "PhotometricInterpretation"):  # a guess could turn the image's polarity around
        raise InputError(400, f"{label('PhotometricInterpretation')} is missing", DAMAGED)
    layout = Layout(
        keyword=keyword,
        rows=whole(ds, "Rows"),
        columns=whole(ds, "Columns"),
        frames=whole(ds, "NumberOfFrames", 1) or 1,  # 0 is a common way to write "one"
        samples=whole(ds, "SamplesPerPixel"),
        photometric=code(ds, "PhotometricInterpretation"),
        bits_allocated=allocated,
        bits_stored=bits_stored,
        high_bit=whole(ds, "HighBit", bits_stored - 1),
        signed=representation == 1 and allocated > 1,
    )
    _check_layout(layout)
    _check_size(layout, limits)
    return layout


def _check_layout(layout: Layout) -> None:
    for value, keyword in (
        (layout.rows, "Rows"),
        (layout.columns, "Columns"),
        (layout.frames, "NumberOfFrames"),
    ):
        if value < 1:
            raise InputError(400, f"{label(keyword)} is not positive", DAMAGED)
    if layout.bits_allocated not in ((32, 64) if layout.is_float else (1, 8, 16, 32)):
        raise InputError(415, f"{label('BitsAllocated')} is not 1, 8, 16 or 32", "Export it with 16 bits")
    if not 1 <= layout.bits_stored <= layout.bits_allocated:
        raise InputError(400, f"{label('BitsStored')} does not fit {label('BitsAllocated')}", DAMAGED)
    if layout.photometric not in (GREY if layout.is_float else (*GREY, *COLOR)):
        hint = "Export it as MONOCHROME2"
        raise InputError(415, f"{label('PhotometricInterpretation')} is not supported", hint)
    grey = layout.photometric in (*GREY, "PALETTE COLOR")
    if layout.samples != (1 if grey else 3):
        fault = f"{label('SamplesPerPixel')} contradicts {label('PhotometricInterpretation')}"
        raise InputError(400, fault, DAMAGED)


def _check_size(layout: Layout, limits: Limits) -> None:
    pixels = layout.rows * layout.columns
    size = f"{label('Rows')} times {label('Columns')}"
    if pixels > limits.max_pixels:
        raise InputError(413, f"{size} is more than {limits.max_pixels} pixels", "Send smaller frames")
    if layout.frames > limits.max_frames:
        fault = f"{label('NumberOfFrames')} is more than {limits.max_frames}"
        raise InputError(413, fault, "Send it in parts")
    channels = 1 if layout.photometric in GREY else 3
    if pixels * layout.frames * channels > limits.max_values:
        fault = f"{size} times {label('NumberOfFrames')} is more than {limits.max_values} values"
        raise InputError(413, fault, "Send it in parts")
