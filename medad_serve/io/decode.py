"""The one entrance: bytes or a path of any accepted kind become ``Pixels``."""

from __future__ import annotations

from pathlib import Path

from medad_serve.errors import InputError
from medad_serve.io.dicom import decode_dicom
from medad_serve.io.elements import is_dicom
from medad_serve.io.image import JPEG, PNG, decode_image
from medad_serve.io.limits import DEFAULT_LIMITS, Limits
from medad_serve.io.members import ZIP
from medad_serve.io.nifti import decode_nifti, is_nifti
from medad_serve.io.numpy_file import NPY, decode_npy
from medad_serve.io.package import decode_members, decode_zip
from medad_serve.io.pixels import Pixels
from medad_serve.io.source import read_path, too_many_bytes

ACCEPTED = (
    "Send a DICOM file, a PNG or a JPEG, a volume as .nii, .nii.gz or .npy, or a ZIP: the DICOM files of one "
    "series or one volume, with a label mask as NIfTI where the model cuts regions"
)
SEND_FILE = "Send the file itself, e.g. curl -T file"

_OTHERS = (
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"GIF8", "GIF"),
    (0, b"BM", "BMP"),
    (0, b"%PDF", "PDF"),
    (0, b"7z\xbc\xaf\x27\x1c", "7z"),
    (0, b"NRRD0", "NRRD"),
    (257, b"ustar", "tar"),
)


def decode(source: bytes | Path | tuple[bytes, ...], limits: Limits = DEFAULT_LIMITS) -> Pixels:
    """Decode a DICOM file, a PNG, a JPEG, NIfTI, .npy, or a ZIP of a series or volume, told apart by content.

    A tuple holds the files of one series or volume, as a ZIP would; a file alone is that file.

    Raises:
        InputError: 400 not decodable, 413 too large, 415 encoding not supported, 422 no usable pixels.
    """
    data = read_path(source, limits) if isinstance(source, Path) else source
    if isinstance(data, tuple) and len(data) == 1:
        [data] = data
    if not data:
        raise InputError(400, "the input is empty", SEND_FILE)
    if (sum(map(len, data)) if isinstance(data, tuple) else len(data)) > limits.max_bytes:
        raise too_many_bytes(limits)
    try:
        return _parts(data, limits) if isinstance(data, tuple) else _dispatch(data, limits)
    except MemoryError:
        raise InputError(413, "the input needs more memory than there is", "Send fewer frames") from None


def _parts(parts: tuple[bytes, ...], limits: Limits) -> Pixels:
    if len(parts) > limits.max_members:
        raise InputError(413, f"the request holds more than {limits.max_members} files", "Send fewer files")
    if any(part.startswith(ZIP) for part in parts):
        raise InputError(415, "one of the files sent together is a ZIP", "Send the ZIP alone")
    return decode_members(list(parts), limits)


def _dispatch(data: bytes, limits: Limits) -> Pixels:
    if data[128:132] == b"DICM":  # first: the 128 bytes before it may hold anything
        return decode_dicom(data, limits)
    if data.startswith((PNG, JPEG)):
        return decode_image(data, limits)
    if data.startswith(ZIP):
        return decode_zip(data, limits)
    if is_nifti(data):
        return decode_nifti(data, limits)
    if data.startswith(NPY):
        return decode_npy(data, limits)
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
