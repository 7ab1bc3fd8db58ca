"""PNG and JPEG to pixels, through OpenCV."""

from __future__ import annotations

import struct

import cv2
import numpy as np
from numpy.typing import NDArray

from medad_serve.errors import InputError
from medad_serve.io.codestream import frame_size
from medad_serve.io.limits import Limits
from medad_serve.io.pixels import Facts, Pixels, is_grey

PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8\xff"
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)  # a damaged file is told by our own error


def decode_image(data: bytes, limits: Limits) -> Pixels:
    """Decode an 8- or 16-bit PNG or JPEG; values stay as stored, ``facts.stored_range`` tells their type.

    Alpha is dropped, three equal channels become grey. An EXIF orientation is ignored: pixels keep the
    order they are stored in, so that a heatmap lies on the file's own grid and training sees what serving
    sees.

    Raises:
        InputError: 400 damaged, 413 over the limits, 415 a pixel type other than 8 or 16 bit.
    """
    _check_size(data, limits)
    try:
        array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        array = None
    if array is None:
        raise InputError(400, "the image cannot be decoded", "The file is damaged or cut short: send it whole")
    if array.dtype not in (np.uint8, np.uint16):
        raise InputError(415, "the image holds neither 8- nor 16-bit values", "Save it as 8- or 16-bit PNG")
    bits = array.dtype.itemsize * 8
    grey, photometric = _without_alpha(np.asarray(array))
    facts = Facts(photometric=photometric, bits=bits, stored_range=(0.0, 2.0**bits - 1))
    return Pixels(array=grey.astype(np.float32)[np.newaxis], kind="image", facts=facts)


def _without_alpha(array: NDArray[np.generic]) -> tuple[NDArray[np.generic], str]:
    """Return grey (H, W) or RGB (H, W, 3) of OpenCV's grey, BGR or BGRA."""
    if array.ndim == 2:
        return array, "MONOCHROME2"
    if array.shape[2] < 3:
        return array[..., 0], "MONOCHROME2"
    rgb = array[..., 2::-1]
    return (rgb[..., 0], "MONOCHROME2") if is_grey(rgb) else (rgb, "RGB")


def _check_size(data: bytes, limits: Limits) -> None:
    """Refuse by the header, before OpenCV allocates by it."""
    if data.startswith(PNG):  # IHDR comes first: PNG 11.2.2
        if len(data) < 33 or data[12:16] != b"IHDR":
            raise InputError(400, "the PNG has no header", "The file is damaged: send it whole")
        columns, rows = struct.unpack_from(">II", data, 16)
        channels = 3 if data[25] & 2 else 1
    else:
        size = frame_size(data)
        if size is None:
            raise InputError(400, "the JPEG has no header", "The file is damaged: send it whole")
        rows, columns, channels, _ = size
    if rows * columns > limits.max_pixels or rows * columns * channels > limits.max_values:
        raise InputError(413, f"the image has more than {limits.max_pixels} pixels", "Send a smaller one")
