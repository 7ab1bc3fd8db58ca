"""NumPy's .npy to frames or a volume, through numpy.lib.format."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
from numpy.lib import format as npy

from medad_serve.errors import InputError
from medad_serve.io.layout import damaged
from medad_serve.io.limits import Limits, check_shape
from medad_serve.io.pixels import Facts, Pixels
from medad_serve.io.quiet import quiet
from medad_serve.io.rescale import linear

NPY = b"\x93NUMPY"
_NUMBERS = "Save it as integers or floats of up to 64 bits"


def decode_npy(data: bytes, limits: Limits) -> Pixels:
    """Decode one image (H, W) or volume (D, H, W) of bool, integer or float values; nothing is unpickled.

    Raises:
        InputError: 400 damaged, 413 over the limits, 415 Python objects or another version of the format,
            422 neither two nor three axes, or not real numbers.
    """
    with quiet(), damaged("the .npy file has no readable header", "The file is damaged: save it again"):
        shape, fortran, dtype, start = _header(data)
    if dtype.hasobject or (dtype.kind == "f" and dtype.itemsize > 8):
        raise InputError(415, "the .npy file holds Python objects or extended floats", _NUMBERS)
    if dtype.kind not in "biuf":
        raise InputError(422, "the .npy file holds other values than real numbers", _NUMBERS)
    if len(shape) not in (2, 3):
        hint = "Save one image as (H, W) or one volume as (D, H, W)"
        raise InputError(422, f"the .npy array has {len(shape)} axes", hint)
    volume = (1, *shape) if len(shape) == 2 else shape
    check_shape(volume, limits)
    count = volume[0] * volume[1] * volume[2]
    if len(data) - start < count * dtype.itemsize:
        raise InputError(400, "the .npy file ends before its last value", "The file is cut short: send it whole")
    stored = np.frombuffer(data, dtype, count, start).reshape(shape, order="F" if fortran else "C")
    array, stored_range = linear(stored.reshape(volume), 1.0, 0.0)
    return Pixels(array=array, kind="array", facts=Facts(stored_range=stored_range))


def _header(data: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Return shape, order, dtype and where the values begin."""
    file = BytesIO(data)
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):  # 3.0 is written for field names alone
        raise InputError(415, "the .npy file is neither of version 1.0 nor 2.0", _NUMBERS)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(file)
    return shape, fortran, dtype, file.tell()
