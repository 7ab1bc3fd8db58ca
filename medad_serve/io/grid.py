"""Where voxels lie in the patient: from the planes of DICOM slices, and from the affine of a volume.

DICOM counts millimetres towards the patient's left, back and head (LPS), affines towards right, front and
head (RAS): the first two coordinates differ in sign.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medad_serve.io.pixels import Axes, Triple

Affine = NDArray[np.float64]
TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
SAME_MM = 1e-3
"""Places that are nearer than this are one."""
EVEN = 0.1
"""Share of the spacing by which a slice may lie beside its even place: scanners round positions."""
_SQUARE = 0.01
FAR_MM = 1e6
"""No scan reaches as far, and no voxel."""


def volume_affine(
    origins: Sequence[Triple], axes: Axes, spacing_mm: tuple[float, float] | None
) -> tuple[Affine | None, str]:
    """Return the affine of frames in their order, None where none holds for all; and why they lie unevenly.

    ``origins`` are Image Position (Patient) of every frame, ``axes`` their common Image Orientation (Patient),
    ``spacing_mm`` is (between rows, between columns). The affine maps array index (slice, row, column) to RAS+
    millimetres (PS3.3 C.7.6.2.1.1); a gantry tilt, where slices shift sideways, becomes its shear.
    """
    across, down = np.array(axes[:3]), np.array(axes[3:])
    if len(origins) < 2:
        return None, ""
    step, fault = even_step(origins, np.cross(across, down))
    lengths = np.linalg.norm(across), np.linalg.norm(down)
    square = max(abs(across @ down), *(abs(length - 1) for length in lengths)) < _SQUARE
    if step is None or spacing_mm is None or not square or max(spacing_mm) >= FAR_MM:
        return None, fault
    lps = np.eye(4)
    lps[:3] = np.column_stack(
        [step, down / lengths[1] * spacing_mm[0], across / lengths[0] * spacing_mm[1], origins[0]]
    )
    return TO_RAS @ lps, ""


def even_step(origins: Sequence[Triple], normal: NDArray[np.float64]) -> tuple[NDArray[np.float64] | None, str]:
    """Return the vector from each slice to the next in mm, or None and what is uneven, counted.

    The commonest gap is taken to be the lower median, so that of three slices with one missing between them
    the smaller gap counts.
    """
    places = np.array(origins)
    if np.abs(places).max() >= FAR_MM:
        return None, "the slices do not lie on one grid"
    steps = len(places) - 1
    length = float(np.linalg.norm(normal))
    gaps = np.diff(places @ (normal / length if length > 0 else normal))
    gaps *= -1 if gaps.sum() < 0 else 1
    spacing = float(np.sort(gaps)[(steps - 1) // 2])
    if not spacing > SAME_MM:
        return None, "slices lie at the same place or out of order"
    step = (places[-1] - places[0]) / steps
    beside = np.linalg.norm(places - places[0] - np.arange(steps + 1)[:, None] * step, axis=1).max()
    if beside <= EVEN * spacing:
        return step, ""
    ratios = gaps / spacing
    whole = np.maximum(np.rint(ratios), 1)
    fits = np.abs(ratios - whole) <= EVEN
    missing, odd = int((whole[fits] - 1).sum()), int((~fits).sum())
    faults = [f"{missing} {'slice is' if missing == 1 else 'slices are'} missing"] * (missing > 0)
    faults += [f"the spacing of slices differs at {odd} {'place' if odd == 1 else 'places'}"] * (odd > 0)
    return None, ", ".join(faults) or "the slices do not lie on one grid"


def voxel_spacing(affine: Affine) -> tuple[float, float]:
    """Return (between rows, between columns) in mm."""
    rows, columns = np.linalg.norm(affine[:3, 1:3], axis=0)
    return float(rows), float(columns)


def plane(origin: Triple, axes: Axes) -> tuple[float | None, Triple | None]:
    """Return the place along the normal in mm and the unit normal, rounded to 0.001, of a slice in LPS."""
    a, b, c, d, e, f = axes
    normal = (b * f - c * e, c * d - a * f, a * e - b * d)
    length = math.hypot(*normal)
    if not length > 1e-6:
        return None, None
    x, y, z = (n / length for n in normal)
    along = x * origin[0] + y * origin[1] + z * origin[2]
    # + 0.0 turns -0.0 into 0.0, so that equal planes compare equal
    return float(np.float64(along)), (round(x, 3) + 0.0, round(y, 3) + 0.0, round(z, 3) + 0.0)


def first_plane(affine: Affine) -> tuple[float | None, Triple | None]:
    """Return what :func:`plane` does, for the first slice of a volume."""
    lps = TO_RAS @ affine
    return plane(tuple(lps[:3, 3].tolist()), (*lps[:3, 2].tolist(), *lps[:3, 1].tolist()))
