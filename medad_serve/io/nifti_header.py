"""What a NIfTI-1 or NIfTI-2 header declares, checked before any voxel is inflated or allocated."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from medad_serve.errors import InputError
from medad_serve.io.grid import FAR_MM, Affine
from medad_serve.io.layout import damaged
from medad_serve.io.limits import Limits, check_shape

HEADER_BYTES = 540
"""Of NIfTI-2, the longer one."""
_FIRST_VOXEL = {1: 352, 2: 544}
_TO_MM = {0: 1.0, 1: 1e3, 2: 1.0, 3: 1e-3}
"""Units of space by the lowest three bits of xyzt_units: unknown, metre, millimetre, micrometre."""
_NEAR_MM = 1e-6
_FLAT = 1e-4
"""Volume of a voxel over that of a box with its sides, below which its axes count as one plane."""
_AFFINE_HINT = "Write sform or qform with the scanner's geometry (e.g. convert the DICOM series with dcm2niix)"


@dataclass(frozen=True)
class Header:
    """The layout of the voxels and where they lie."""

    shape: tuple[int, int, int]
    """Voxels along the axes of the file."""
    dtype: np.dtype[Any]
    start: int
    """Of the voxels, in bytes."""
    slope: float
    intercept: float
    affine: Affine
    """``(4, 4)``, index along the axes of the file to RAS+ millimetres."""
    raw: Any
    """nibabel's header."""

    @property
    def count(self) -> int:
        """Number of voxels."""
        return math.prod(self.shape)


def version(head: bytes) -> int:
    """Return 1 or 2 for what begins as a NIfTI file, 0 for anything else; a lone header of a pair counts too."""
    if head[344:348] in (b"n+1\0", b"ni1\0"):
        return 1
    return 2 if head[4:12] in (b"n+2\0\r\n\x1a\n", b"ni2\0\r\n\x1a\n") else 0


def read_header(head: bytes, limits: Limits) -> Header:
    """Read the first bytes of a file that :func:`version` knows.

    Raises:
        InputError: 400 damaged, 413 over the limits, 415 a header without its voxels or a voxel type other
            than real numbers, 422 no volume, or no valid affine.
    """
    import nibabel  # costs 0.3 s to import

    kind = version(head)
    if head[344:348] == b"ni1\0" or head[4:7] == b"ni2":
        raise InputError(415, "the NIfTI header comes without its voxels", "Send one .nii or .nii.gz file")
    with damaged("the NIfTI header cannot be read"):
        # of the block alone: from a file, nibabel would read extensions too, which may hold anything
        first = kind == 1
        raw = nibabel.Nifti1Header(head[:348], check=False) if first else nibabel.Nifti2Header(head, check=False)
        declared = tuple(int(size) for size in raw["dim"][: int(raw["dim"][0]) + 1])[1:]
        start = int(raw["vox_offset"])
        slope, intercept = raw.get_slope_inter()
    shape = _shape(declared)
    check_shape(sorted(shape), limits)
    dtype = _dtype(raw)
    if start < _FIRST_VOXEL[kind]:
        raise InputError(400, "the NIfTI header lets voxels begin within itself", "Export it again from its source")
    affine = _affine(raw)
    return Header(shape, dtype, start, 1.0 if slope is None else slope, intercept or 0.0, affine, raw)


def _dtype(raw: Any) -> np.dtype[Any]:
    try:
        dtype: np.dtype[Any] = raw.get_data_dtype()
    except Exception:  # a code that nibabel does not know
        dtype = np.dtype(object)
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        fault = "the NIfTI file holds colours or another type than integers and floats of up to 64 bits"
        raise InputError(415, fault, "Save one grey value a voxel")
    return dtype


def _shape(declared: tuple[int, ...]) -> tuple[int, int, int]:
    if not 1 <= len(declared) <= 7 or min(declared) < 1:
        raise InputError(
            400, "the NIfTI header declares no axes, or one without voxels", "Export it again from its source"
        )
    if any(size > 1 for size in declared[3:]):
        raise InputError(422, "the NIfTI file holds several volumes", "Send one volume, e.g. one time point")
    if len(declared) < 2:
        raise InputError(422, "the NIfTI file holds fewer than two axes", "Send an image or a volume")
    x, y, z = (*declared, 1)[:3]
    return x, y, z


def _affine(raw: Any) -> Affine:
    """Return the sform where its code says that it holds, else the qform (the order of the NIfTI-1 standard)."""
    if int(raw["sform_code"]) <= 0 and int(raw["qform_code"]) <= 0:
        fault = "the NIfTI file has no valid affine: sform_code and qform_code are both 0"
        raise InputError(422, fault, _AFFINE_HINT)
    name = "sform" if int(raw["sform_code"]) > 0 else "qform"
    try:
        affine = np.array(raw.get_sform() if name == "sform" else raw.get_qform(), np.float64)
    except Exception:  # nibabel's several errors on quaternions and sizes that are none
        affine = np.full((4, 4), np.nan)
    with np.errstate(all="ignore"):
        affine[:3] *= _TO_MM.get(int(raw["xyzt_units"]) & 7, 1.0)
        sides = np.linalg.norm(affine[:3, :3], axis=0)
        usable = np.abs(affine).max() < FAR_MM and sides.min() > _NEAR_MM  # NaN is neither
        if not usable or abs(np.linalg.det(affine[:3, :3] / sides)) < _FLAT:
            fault = f"the NIfTI file has no valid affine: its {name} is singular or not finite"
            raise InputError(422, fault, _AFFINE_HINT)
    return affine
