"""NIfTI volumes to frames and back, through nibabel."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medad_serve.errors import InputError
from medad_serve.files import write_whole
from medad_serve.io.grid import Affine, first_plane, voxel_spacing
from medad_serve.io.limits import DEFAULT_LIMITS, Limits, check_shape
from medad_serve.io.nifti_header import HEADER_BYTES, Header, read_header, version
from medad_serve.io.pixels import Facts, Pixels
from medad_serve.io.rescale import linear
from medad_serve.io.source import read_path

GZIP = b"\x1f\x8b"
_CHUNK = 2**20
_VOLUME = "SPL"
"""Where slices, rows and columns run to (superior, posterior, left): what an axial DICOM series shows."""
_IMAGE = {0: "LIP", 1: "PIL", 2: "SPL"}
"""The same of a single slice, by the axis across it: sagittal, coronal and axial as they are read."""
_GEOMETRY = (
    *("pixdim", "xyzt_units", "sform_code", "srow_x", "srow_y", "srow_z"),
    *("qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
)
"""Header fields that place the voxels."""


@dataclass(frozen=True)
class Volume:
    """Stored voxels in the axes of ``Pixels``."""

    stored: NDArray[Any]
    """``(D, H, W)``, a view of the file."""
    affine: Affine
    """``(4, 4)``, array index to RAS+ millimetres."""
    header: Header


def is_nifti(data: bytes) -> bool:
    """Whether the bytes begin as NIfTI, or as gzip, of which nothing else is read here."""
    return data.startswith(GZIP) or version(data) > 0


def holds_nifti(data: bytes) -> bool:
    """Whether the bytes are NIfTI, also within gzip, as far as their beginning tells."""
    if not data.startswith(GZIP):
        return version(data) > 0
    try:
        with _gunzip(data) as file:
            return version(file.read(HEADER_BYTES)) > 0
    except InputError:
        return False


def decode_nifti(data: bytes, limits: Limits) -> Pixels:
    """Decode a ``.nii`` or ``.nii.gz`` of one volume, reoriented to slices upward, rows back, columns left.

    A volume of one slice becomes one frame, as it is read: an axial one anterior up, a coronal or sagittal
    one head up. Values are rescaled by scl_slope and scl_inter.

    Raises:
        InputError: 400 damaged, 413 over the limits, 415 a gzip of something else or voxels that are no real
            numbers, 422 several volumes, no valid affine, or values that are not finite in float32.
    """
    return to_pixels(read_volume(data, limits))


def to_pixels(volume: Volume) -> Pixels:
    """Rescale a volume; raises InputError 422 as of :func:`decode_nifti`."""
    array, stored_range = linear(volume.stored, volume.header.slope, volume.header.intercept)
    position, normal = first_plane(volume.affine)
    return Pixels(
        array=array,
        kind="nifti",
        spacing_mm=voxel_spacing(volume.affine),
        affine=volume.affine,
        facts=Facts(stored_range=stored_range, position=position, normal=normal),
    )


def read_volume(data: bytes, limits: Limits) -> Volume:
    """Read the stored voxels of one volume; raises as :func:`decode_nifti`."""
    header, body = _inflated(data, limits) if data.startswith(GZIP) else _plain(data, limits)
    stored = np.frombuffer(body, header.dtype, header.count).reshape(header.shape, order="F")
    array, affine = _reoriented(stored, header.affine)
    check_shape(array.shape, limits)
    return Volume(array, affine, header)


def _plain(data: bytes, limits: Limits) -> tuple[Header, memoryview]:
    header = read_header(data[:HEADER_BYTES], limits)
    need = header.count * header.dtype.itemsize
    if len(data) < header.start + need:
        raise _cut_short()
    return header, memoryview(data)[header.start : header.start + need]


def _inflated(data: bytes, limits: Limits) -> tuple[Header, bytearray]:
    """Inflate the voxels that the header declares, and only count what comes after them."""
    with _gunzip(data) as file:
        header = read_header(_nifti_head(file), limits)
        need = header.count * header.dtype.itemsize
        left = limits.max_bytes - header.start - need
        if left < 0:
            raise _too_large(limits)
        file.seek(header.start)
        body = _take(file, need)
        while extra := file.read(_CHUNK):  # to the end, where gzip checks its sum
            left -= len(extra)
            if left < 0:
                raise _too_large(limits)
    if len(body) < need:
        raise _cut_short()
    return header, body


@contextmanager
def _gunzip(data: bytes) -> Iterator[gzip.GzipFile]:
    try:
        with gzip.GzipFile(fileobj=BytesIO(data)) as file:
            yield file
    except EOFError:
        raise _cut_short() from None
    except (OSError, zlib.error):
        raise InputError(400, "the gzip file is damaged", "Send it whole") from None


def _nifti_head(file: gzip.GzipFile) -> bytes:
    head = file.read(HEADER_BYTES)
    if not version(head):
        raise InputError(415, "gzip of anything but NIfTI is not supported", "Send .nii.gz, or the file itself")
    return head


def _take(file: gzip.GzipFile, need: int) -> bytearray:
    body = bytearray()  # grows with what is there, not with what is declared
    while len(body) < need and (part := file.read(min(_CHUNK, need - len(body)))):
        body += part
    return body


def _cut_short() -> InputError:
    return InputError(400, "the NIfTI file ends before its last voxel", "The file is cut short: send it whole")


def _too_large(limits: Limits) -> InputError:
    return InputError(413, f"the file inflates to more than {limits.max_bytes} bytes", "Send it smaller")


def _turn(shape: tuple[int, ...], affine: Affine) -> NDArray[np.float64]:
    """Return nibabel's orientation transform from the axes of a file to those of ``Pixels``."""
    from nibabel import orientations

    here = orientations.io_orientation(affine)
    across = [int(world) for size, (world, _) in zip(shape, here, strict=True) if size == 1]
    letters = _IMAGE[across[0]] if len(across) == 1 else _VOLUME
    return np.asarray(orientations.ornt_transform(here, orientations.axcodes2ornt(tuple(letters))))


def _reoriented(stored: NDArray[Any], affine: Affine) -> tuple[NDArray[Any], Affine]:
    from nibabel import orientations

    turn = _turn(stored.shape, affine)
    back = orientations.inv_ornt_aff(turn, stored.shape)
    return orientations.apply_orientation(stored, turn), affine @ back


def write_nifti(path: Path, array: NDArray[np.float32], affine: Affine | None = None, like: Path | None = None) -> None:
    """Write a map ``(D, H, W)`` whole or not at all, compressed where the name ends in ``.gz``.

    ``affine`` maps its index (slice, row, column) to RAS+ millimetres; None leaves the file without one. With
    ``like``, the NIfTI that the map was made from, the map is turned back: shape and affine are exactly those
    of that file, so that both lie on each other in any viewer. Nothing else of it is copied: its texts and
    extensions may name a person.

    Raises:
        InputError: ``like`` cannot be read, or another grid than the map's (422).
    """
    data = to_nifti(array, affine) if like is None else _to_nifti_like(array, like)
    write_whole(path, gzip.compress(data, 6, mtime=0) if path.name.endswith(".gz") else data)


def to_nifti(array: NDArray[np.float32], affine: Affine | None) -> bytes:
    """Return ``.nii`` of ``(D, H, W)``, its axes turned round (column, row, slice) so that no voxel moves."""
    import nibabel

    turned = None if affine is None else affine[:, [2, 1, 0, 3]]
    image = nibabel.Nifti1Image(np.asarray(array, np.float32).T, turned)
    image.header.set_xyzt_units("mm")
    return bytes(image.to_bytes())


def _to_nifti_like(array: NDArray[np.float32], like: Path) -> bytes:
    import nibabel
    from nibabel import orientations

    header = _header_of(read_path(like, DEFAULT_LIMITS))
    forth = _turn(header.shape, header.affine)
    back = np.empty_like(forth)
    for source, (target, flip) in enumerate(forth):
        back[int(target)] = source, flip
    turned = orientations.apply_orientation(np.asarray(array, np.float32), back)
    if turned.shape != header.shape:
        raise InputError(422, "the map has another shape than the NIfTI it is made like", "Name its source")
    raw = header.raw
    same = turned.reshape(raw["dim"][1 : int(raw["dim"][0]) + 1])
    is_second = isinstance(raw, nibabel.Nifti2Header)
    image = nibabel.Nifti2Image(same, None) if is_second else nibabel.Nifti1Image(same, None)
    for field in _GEOMETRY:
        image.header[field] = raw[field]
    return bytes(image.to_bytes())


def _header_of(data: bytes) -> Header:
    if data.startswith(GZIP):
        with _gunzip(data) as file:
            return read_header(_nifti_head(file), DEFAULT_LIMITS)
    if not version(data):
        raise InputError(415, "what the map is made like is no NIfTI", "Name a .nii or .nii.gz file")
    return read_header(data[:HEADER_BYTES], DEFAULT_LIMITS)
