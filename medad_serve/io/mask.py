"""Label masks: which volume is one, and how it comes onto the grid of a scan."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medad_serve.errors import InputError
from medad_serve.io.grid import Affine
from medad_serve.io.nifti import Volume

MOST_LABELS = 255
SAME_GRID = 1e-3
"""Largest difference between two affines of one grid, mm."""
_BINCOUNT = 65536


def labels_of(volume: Volume) -> NDArray[np.int32] | None:
    """Return the labels of a mask, ``(D, H, W)``, or None for a volume that is none.

    A mask holds whole numbers from 0 on, at most 255 different ones beside the background 0, in whatever
    type they are stored; a scan in HU has negative values.
    """
    labels = np.empty(volume.stored.shape, np.int32)
    found: set[int] = set()
    for stored, out in zip(volume.stored, labels, strict=True):
        values = stored
        if (volume.header.slope, volume.header.intercept) != (1, 0):
            values = stored.astype(np.float64) * volume.header.slope + volume.header.intercept
        if values.dtype.kind == "f" and not (np.isfinite(values).all() and (values == np.rint(values)).all()):
            return None
        if values.min() < 0 or values.max() > np.iinfo(np.int32).max:
            return None
        out[:] = values
        small = out.max() < _BINCOUNT  # counting is a tenth of the work of sorting
        found.update((np.flatnonzero(np.bincount(out.ravel())) if small else np.unique(out)).tolist())
        if len(found - {0}) > MOST_LABELS:
            return None
    return labels


def check_same_grid(scan: Volume, mask: Volume) -> None:
    """Raise InputError 422 unless two volumes in the axes of ``Pixels`` lie voxel on voxel."""
    hint = "Resample the mask onto the scan"
    if scan.stored.shape != mask.stored.shape:
        raise InputError(422, "the label mask has another shape than the scan", hint)
    if np.abs(scan.affine - mask.affine).max() > SAME_GRID:
        raise InputError(422, f"the affines of label mask and scan differ by more than {SAME_GRID} mm", hint)


def resample(labels: NDArray[np.int32], affine: Affine, onto: Affine, shape: tuple[int, int, int]) -> NDArray[np.int32]:
    """Return the label nearest to each voxel of another grid, 0 beyond the mask.

    Both affines map array index to RAS+ millimetres: spacing, orientation and extent may differ.
    """
    there = np.linalg.inv(affine) @ onto
    rows, columns = np.arange(shape[1]), np.arange(shape[2])
    out = np.zeros(shape, np.int32)
    for number, plane in enumerate(out):
        inside = np.ones(plane.shape, np.bool_)
        index = []
        for axis, size in enumerate(labels.shape):
            start = there[axis, 3] + there[axis, 0] * number + 0.5
            at = np.floor((start + there[axis, 1] * rows)[:, None] + there[axis, 2] * columns).astype(np.int64)
            inside &= (at >= 0) & (at < size)
            index.append(at)
        plane[inside] = labels[tuple(at[inside] for at in index)]
    return out
