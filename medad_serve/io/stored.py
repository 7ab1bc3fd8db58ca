"""The stored values of a DICOM image, before any rescale."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID, HTJ2KLossless, HTJ2KLosslessRPCL, JPEG2000Lossless, JPEGLSLossless

from medad_serve.errors import InputError
from medad_serve.io.compressed import check_frames
from medad_serve.io.imagecodecs_plugin import PLUGIN, install
from medad_serve.io.layout import GREY, Layout, damaged
from medad_serve.io.tags import element, label

install()

_REVERSIBLE = (JPEGLSLossless, JPEG2000Lossless, HTJ2KLossless, HTJ2KLosslessRPCL)


def read_stored(ds: Dataset, layout: Layout, syntax: UID) -> tuple[NDArray[Any], tuple[str, ...]]:
    """Return the samples, ``(frames, rows, columns[, 3])``, and notes.

    Native grey samples still hold their unused bits, for :func:`correct_unused_bits` to remove; colour is
    RGB, except for PALETTE COLOR. The array may be a read-only view of the file.
    """
    if layout.is_float or not syntax.is_encapsulated:
        if not layout.is_float and layout.bits_stored - 1 != layout.high_bit < layout.bits_allocated:
            fault = f"{label('HighBit')} is not {label('BitsStored')} - 1, a retired layout"
            raise InputError(415, fault, "Export it again with a current DICOM tool")
        if layout.photometric in GREY and layout.bits_allocated > 1:
            return _native(ds, layout, syntax.is_little_endian)
        notes: tuple[str, ...] = ()
    else:
        notes = check_frames(ds, layout, syntax)
    with damaged(f"{label('PixelData')} cannot be decoded"):
        options: dict[str, Any] = {"allow_excess_frames": False}
        if syntax.is_encapsulated:
            options["decoding_plugin"] = PLUGIN
        array, _ = get_decoder(syntax).as_array(ds, **options)
        shape = (layout.frames, layout.rows, layout.columns) + ((3,) if layout.samples == 3 else ())
        return array.reshape(shape), notes


def _native(ds: Dataset, layout: Layout, little: bool) -> tuple[NDArray[Any], tuple[str, ...]]:
    found = element(ds, layout.keyword)
    data = b"" if found is None else found.value
    count = layout.frames * layout.rows * layout.columns
    need = count * layout.dtype.itemsize
    # PS3.5 8.1.1 and annex A.3: two samples a word
    swapped = not little and layout.bits_allocated == 8 and found is not None and found.VR == "OW"
    if not isinstance(data, bytes) or len(data) < need + need % 2 * swapped:
        fault = f"{label(layout.keyword)} is shorter than {label('Rows')} and {label('Columns')} ask for"
        raise InputError(400, fault, "The file is cut short: send it whole")
    if swapped:
        data = np.frombuffer(data, np.uint16, len(data) // 2).byteswap().tobytes()
    order = layout.dtype if little else layout.dtype.newbyteorder(">")
    array = np.frombuffer(data, order, count).reshape(layout.frames, layout.rows, layout.columns)
    excess = (len(data) - need) // (need // layout.frames)
    notes = (f"frames beyond {label('NumberOfFrames')} left out: {excess}",) if excess else ()
    return array.astype(layout.dtype, copy=False), notes


def correct_unused_bits(array: NDArray[Any], layout: Layout, syntax: UID) -> NDArray[Any]:
    """Set the bits above Bits Stored from the sign (PS3.5 8.1.1 leaves their value open).

    Of JPEG-LS and JPEG 2000 only reversible syntaxes are touched: their codestreams may have a precision
    above Bits Stored, where encoders differ in whether they extend the sign (pydicom leaves them); lossy
    ones may overshoot Bits Stored, and cutting bits off would turn white into black.
    """
    shift = layout.dtype.itemsize * 8 - layout.bits_stored
    untouched = syntax.is_encapsulated and syntax not in _REVERSIBLE
    if shift == 0 or untouched or layout.is_float or layout.bits_allocated == 1:
        return array
    corrected = np.empty_like(array)
    if layout.signed:
        np.left_shift(array, shift, out=corrected)
        np.right_shift(corrected, shift, out=corrected)
    else:
        np.bitwise_and(array, layout.dtype.type(layout.stored_range[1]), out=corrected)
    return corrected
