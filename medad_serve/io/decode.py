"""The one entrance: bytes or a path of any accepted kind become ``Pixels``."""

from __future__ import annotations

from pathlib import Path

from medad_serve.errors import InputError
from medad_serve.io.dicom import decode_dicom, is_dicom
from medad_serve.io.image import JPEG, PNG, decode_image
from medad_serve.io.limits import DEFAULT_LIMITS, Limits
from medad_serve.io.pixels import Pixels
from medad_serve.io.series import ZIP, decode_zip

ACCEPTED = "Send a DICOM file, a ZIP of the DICOM files of one series, a PNG or a JPEG"
SEND_FILE = "Send the file itself, e.g. curl -T file"

_OTHERS = (
    (0, b"\x1f\x8b", "gzip"),
    (344, b"n+1\0", "NIfTI"),
    (344, b"ni1\0", "NIfTI"),
    (4, b"n+2\0\r\n\x1a\n", "NIfTI"),
    (0, b"\x93NUMPY", "NumPy .npy"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"GIF8", "GIF"),
    (0, b"BM", "BMP"),
    (0, b"%PDF", "PDF"),
    (0, b"7z\xbc\xaf\x27\x1c", "7z"),
    (0, b"NRRD0", "NRRD"),
    (257, b"ustar", "tar"),
)


def decode(source: bytes | Path, limits: Limits = DEFAULT_LIMITS) -> Pixels:
    """Decode a DICOM file, a ZIP of DICOM slices, a PNG or a JPEG, told apart by content.

    Raises:
        InputError: 400 not decodable, 413 too large, 415 encoding not supported, 422 no usable pixels.
    """
    data = read_path(source, limits) if isinstance(source, Path) else source
    if not data:
        raise InputError(400, "the input is empty", SEND_FILE)
    if len(data) > limits.max_bytes:
        raise too_many_bytes(limits)
    try:
        return _dispatch(data, limits)
    except MemoryError:
        raise InputError(413, "the input needs more memory than there is", "Send fewer frames") from None


def too_many_bytes(limits: Limits) -> InputError:
    """Return the error for an input over ``limits.max_bytes``."""
    return InputError(413, f"the input is larger than {limits.max_bytes} bytes", "Send a smaller file")


def read_path(path: Path, limits: Limits) -> bytes:
    """Read a file whose size is within the limits; errors leave the name out, which may be a patient's."""
    try:
        if path.stat().st_size > limits.max_bytes:
            raise too_many_bytes(limits)
        with path.open("rb") as file:
            return file.read(limits.max_bytes + 1)  # bounded also where stat tells no size, as of a pipe
    except OSError as error:
        reason = type(error).__name__
        raise InputError(400, f"the file cannot be read ({reason})", "Name a readable file") from None


def _dispatch(data: bytes, limits: Limits) -> Pixels:
    if data[128:132] == b"DICM":  # first: the 128 bytes before it may hold anything
        return decode_dicom(data, limits)
    if data.startswith((PNG, JPEG)):
        return decode_image(data, limits)
    if data.startswith(ZIP):
        return decode_zip(data, limits)
    for offset, magic, name in _OTHERS:
        if data[offset : offset + len(magic)] == magic:
            raise InputError(415, f"{name} is not supported", ACCEPTED)
    if is_dicom(data):
        return decode_dicom(data, limits)
    if _is_text(data[:512]):
        raise InputError(400, "the input is text, not an image file", SEND_FILE)
    raise InputError(400, "the input is no image file that is known here", ACCEPTED)


def _is_text(head: bytes) -> bool:
    return all(byte >= 32 or byte in b"\t\n\r\f" for byte in head)
