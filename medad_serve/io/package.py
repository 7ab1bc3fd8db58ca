"""What files sent together hold: the slices of a series or a volume, and perhaps a label mask beside it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from medad_serve.errors import InputError
from medad_serve.io.elements import is_dicom
from medad_serve.io.limits import Limits
from medad_serve.io.mask import MOST_LABELS, check_same_grid, labels_of, resample
from medad_serve.io.members import read_members
from medad_serve.io.nifti import Volume, decode_nifti, holds_nifti, read_volume, to_pixels
from medad_serve.io.numpy_file import NPY, decode_npy
from medad_serve.io.pixels import LeftOut, Pixels
from medad_serve.io.series import decode_series, files

_ONE = "Send one series or volume, with at most one label mask as NIfTI"
_MASK = f"A label mask holds whole numbers from 0 on, at most {MOST_LABELS} different ones; a scan in HU does not"


def decode_zip(source: bytes, limits: Limits) -> Pixels:
    """Decode the files of a ZIP together; raises InputError as of :func:`read_members` and of what is found."""
    return decode_members(read_members(source, limits), limits)


def decode_members(members: list[bytes], limits: Limits) -> Pixels:
    """Decode DICOM slices, one volume (NIfTI, .npy), or either with a label mask as NIfTI, sent together.

    Which of two NIfTI files is the mask is told by content (:func:`labels_of`), never by name. It must lie
    voxel on voxel of a NIfTI scan; onto a DICOM series it is resampled by nearest neighbour.

    Raises:
        InputError: as of the decoder of what is found; 422 several volumes, no telling which is the mask, or
            a mask that does not belong to the scan.
    """
    volumes = [member for member in members if _is_volume(member)]
    others = {place: member for place, member in enumerate(members) if not _is_volume(member)}
    if not volumes:
        return decode_series(others, limits)
    has_series = any(map(is_dicom, others.values()))
    if len(volumes) + has_series > 2 or (len(volumes) + has_series == 2 and any(v.startswith(NPY) for v in volumes)):
        raise InputError(422, "the files are more than one volume and its label mask", _ONE)
    if has_series:
        return _series_with_mask(decode_series(others, limits), read_volume(volumes[0], limits))
    pixels = _volume(volumes, limits)
    if not others:
        return pixels
    note = f"{files(len(others))} left out: no volume"
    left_out = tuple(LeftOut(place, "no volume") for place in others)
    return replace(pixels, facts=replace(pixels.facts, notes=(*pixels.facts.notes, note), left_out=left_out))


def _is_volume(member: bytes) -> bool:
    if member[128:132] == b"DICM":
        return False
    return member.startswith(NPY) or holds_nifti(member)


def _volume(volumes: list[bytes], limits: Limits) -> Pixels:
    if len(volumes) == 1:
        decode_one = decode_npy if volumes[0].startswith(NPY) else decode_nifti
        return decode_one(volumes[0], limits)
    read = [read_volume(data, limits) for data in volumes]
    masks = [labels_of(volume) for volume in read]
    if masks[0] is not None and masks[1] is not None:
        raise InputError(422, "either NIfTI file may be the label mask", _MASK)
    if masks[0] is None and masks[1] is None:
        raise InputError(422, "neither NIfTI file is a label mask", _MASK)
    which = 0 if masks[1] is None else 1
    scan, mask = read[1 - which], read[which]
    check_same_grid(scan, mask)
    return replace(to_pixels(scan), labels=masks[which])


def _series_with_mask(series: Pixels, mask: Volume) -> Pixels:
    labels = labels_of(mask)
    if labels is None:
        raise InputError(422, "the NIfTI file beside the series is no label mask", _MASK)
    if series.affine is None or series.array.ndim != 3:
        reason = series.facts.uneven or "they do not say where they lie"
        fault = f"no label mask can be laid on the slices of the series: {reason}"
        raise InputError(422, fault, "Send every slice of one series, each once")
    frames, rows, columns = series.array.shape
    there: NDArray[np.int32] = resample(labels, mask.affine, series.affine, (frames, rows, columns))
    if labels.any() and not there.any():
        raise InputError(422, "no label of the mask lies within the series", "Send the mask of this series")
    return replace(series, labels=there)
