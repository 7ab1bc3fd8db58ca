"""Masks of what is abnormal: whether one can be read and has the size of its image, and its pixels."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from pydicom.errors import InvalidDicomError

from medad_serve.errors import InputError, MedadError
from medad_serve.io import decode

_NIFTI = (".nii", ".nii.gz")
_PICTURES = (".png", ".jpg", ".jpeg")


def header_size(path: Path) -> tuple[int, ...] | None:
    """Return (H, W) of an image or (D, H, W) of an array by the file's header; None where it has none to be read.

    A NIfTI volume is of (Z, Y, X) as it is stored; a DICOM file of several frames has the size of one.
    """
    try:
        if path.name.lower().endswith(_NIFTI):
            return tuple(int(n) for n in nibabel.load(path).shape[::-1])  # type: ignore[attr-defined]
        if path.suffix.lower() == ".npy":
            return tuple(np.load(path, mmap_mode="r", allow_pickle=False).shape)
        if path.suffix.lower() in _PICTURES:
            with Image.open(path) as image:
                return image.height, image.width
        found = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["Rows", "Columns"])
        return int(found.Rows), int(found.Columns)
    except (OSError, ValueError, AttributeError, EOFError, UnidentifiedImageError, InvalidDicomError):
        return None
    except (Image.DecompressionBombError, nibabel.filebasedimages.ImageFileError):
        return None


def check_mask(image: Path, mask: Path) -> None:
    """Raise MedadError where the headers tell two sizes, or where a mask that is a picture cannot be read to its end.

    An image whose header cannot be read is decoding's affair.
    """
    sizes = header_size(image), header_size(mask)
    if None not in sizes and sizes[0] != sizes[1]:
        of_image, of_mask = (" x ".join(map(str, size or ())) for size in sizes)
        raise MedadError(
            f"mask {mask} is {of_mask} pixels (rows x columns), its image {image} is {of_image}",
            "Draw the mask on the image's own pixels",
        )
    if mask.suffix.lower() in _PICTURES:
        read_mask(mask)


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Return which source pixels are abnormal, ``(H, W)`` or ``(D, H, W)``: those that are not 0.

    Raises MedadError where the file cannot be decoded.
    """
    try:
        array = decode(path).array
    except InputError as error:
        raise MedadError(f"mask {path} cannot be read: {error}", "Save it again, e.g. as 8-bit PNG") from None
    marked: NDArray[np.bool_] = array != 0 if array.ndim == 3 else (array != 0).any(axis=-1)
    return marked[0] if len(marked) == 1 else marked
