"""Labelled vertebrae of a CT to volumes of one size, spacing and orientation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medad_serve.errors import InputError
from medad_serve.io import Pixels
from medad_serve.prep.window import FloatArray, apply_window
from medad_serve.spec import Regions

Scheme = Literal["auto", "verse", "totalsegmentator"]
Affine = NDArray[np.float64]

_CERVICAL, _THORACIC = [f"C{i}" for i in range(1, 8)], [f"T{i}" for i in range(1, 14)]
ORDER = (*_CERVICAL, *_THORACIC, *(f"L{i}" for i in range(1, 7)))
"""From the head down; T13 and L6 are the usual supernumerary ones."""
SCHEMES: dict[str, dict[int, str]] = {
    # VerSe 2020 and TPTBox: 26 and above are sacrum, coccyx, T13, then discs and endplates
    "verse": {**dict(enumerate([*_CERVICAL, *_THORACIC[:12], *ORDER[20:]], 1)), 28: "T13"},
    # TotalSegmentator 2, task total: 25 sacrum, 26 S1, then upwards
    "totalsegmentator": dict(enumerate([*ORDER[24:19:-1], *ORDER[18::-1]], 27)),
}
IN_ORDER = 0.75
"""Share of neighbouring levels that must lie in order for a scheme to be the one: a mask may err at some."""
SPECK = 0.02
"""Share of a structure below which a part of it, apart from the rest, is taken for a slip of the mask."""
SMALLEST_MM3 = 1000.0
"""A mask of less is no whole vertebra: a child's atlas measures several times as much."""


@dataclass(frozen=True)
class Structure:
    """One labelled vertebra."""

    label: int
    name: str
    """Level, e.g. ``L3``."""
    centre_mm: NDArray[np.float64]
    """Centroid, RAS+ millimetres, ``(3,)``."""
    fault: str = ""
    """Why it cannot be cut, e.g. that it reaches the border of the scan."""


@dataclass(frozen=True)
class Region:
    """One vertebra as a volume of its own."""

    label: int
    name: str
    volume: FloatArray
    """``(D, H, W)`` on [0, 1]: from inferior to superior, anterior to posterior, right to left."""
    affine: Affine
    """``(4, 4)``, crop index to RAS+ millimetres."""


def _share_in_order(heights: dict[int, float], names: dict[int, str]) -> float:
    """Return the share of neighbouring levels of a scheme of which the upper one lies higher."""
    levels = sorted(heights.keys() & names.keys(), key=lambda label: ORDER.index(names[label]))
    pairs = [heights[above] > heights[below] for above, below in pairwise(levels)]
    return sum(pairs) / len(pairs) if pairs else 1.0


def level_names(heights: dict[int, float], scheme: Scheme = "auto") -> dict[int, str]:
    """Name the labels of a mask by their numbers; labels that are no vertebra are left out.

    ``heights`` gives each label's place along the superior axis, mm. ``auto`` tells the schemes apart by
    content: VerSe numbers from the head down, TotalSegmentator upwards, so the one is meant in whose order the
    labels lie; of both (a single label, mostly) the one that names more. Raises InputError 422 where neither fits.
    """
    if scheme == "auto":
        fitting = [s for s, names in SCHEMES.items() if _share_in_order(heights, names) >= IN_ORDER]
        counts = {s: sum(label in SCHEMES[s] for label in heights) for s in fitting}
        scheme = max(("totalsegmentator", "verse"), key=lambda s: counts.get(s, 0))
        if not counts.get(scheme):
            raise InputError(
                422,
                "the mask's labels are in the order of neither VerSe nor TotalSegmentator vertebrae",
                "Send a mask that numbers whole vertebrae by one of the two",
            )
    return {label: SCHEMES[scheme][label] for label in heights if label in SCHEMES[scheme]}


def _solid(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Drop specks: parts of a structure that hold next to nothing of it."""
    parts, count = ndimage.label(mask, np.ones((3, 3, 3)))
    if count == 1:
        return mask
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return np.asarray((sizes >= SPECK * sizes.sum())[parts] & mask)


def find_structures(
    labels: NDArray[np.int32], affine: Affine, spec: Regions, scheme: Scheme = "auto"
) -> tuple[Structure, ...]:
    """Find every vertebra of a mask ``(D, H, W)``, from the head down, and whether it can be cut.

    ``affine`` maps array index to RAS+ millimetres. Raises InputError 422 as ``level_names`` does.
    """
    largest = max(max(names) for names in SCHEMES.values())
    boxes = {n: box for n, box in enumerate(ndimage.find_objects(labels, largest), 1) if box is not None}
    middles = {n: np.array([(s.start + s.stop - 1) / 2 for s in box]) for n, box in boxes.items()}
    names = level_names({n: float(affine[2, :3] @ middle + affine[2, 3]) for n, middle in middles.items()}, scheme)
    found = [_measure(n, names[n], labels, boxes[n], affine, spec) for n in names]
    return tuple(sorted(found, key=lambda s: ORDER.index(s.name)))


def _measure(
    label: int, name: str, labels: NDArray[np.int32], box: tuple[slice, ...], affine: Affine, spec: Regions
) -> Structure:
    index = np.argwhere(_solid(labels[box] == label)) + [s.start for s in box]
    points = index @ affine[:3, :3].T + affine[:3, 3]
    centre = points.mean(axis=0)
    half = spec.spacing_mm * (np.array(spec.size) - 1) / 2
    fault = ""
    if (index == 0).any() or (index == np.array(labels.shape) - 1).any():
        fault = "reaches the border of the scan"
    elif len(index) * abs(np.linalg.det(affine[:3, :3])) < SMALLEST_MM3:
        fault = "is too small to be a vertebra"
    elif (np.abs(points - centre).max(axis=0)[::-1] > half).any():
        fault = "is larger than the crop"
    return Structure(label, name, centre, fault)


def measured(pixels: Pixels, spec: Regions) -> FloatArray:
    """Return the values of a scan, the window's floor where padding holds no measurement."""
    if pixels.padding is None:
        return pixels.array
    return np.where(pixels.padding, np.float32(spec.window.center - spec.window.width / 2), pixels.array)


def crop_affine(centre_mm: NDArray[np.float64], spec: Regions) -> Affine:
    """Return the affine of a crop about a centre: axes towards superior, posterior and left."""
    affine = np.eye(4)
    affine[:3, :3] = np.array([[0, 0, -1], [0, -1, 0], [1, 0, 0]]) * spec.spacing_mm
    affine[:3, 3] = centre_mm - affine[:3, :3] @ ((np.array(spec.size) - 1) / 2)
    return affine


def cut(array: FloatArray, affine: Affine, structure: Structure, spec: Regions) -> Region:
    """Resample one vertebra of ``array (D, H, W)`` in HU, and window it.

    A Gaussian goes before along each axis whose spacing grows (sigma half the factor less one, as in
    scikit-image's ``resize``), then trilinear interpolation; beyond the scan lies the window's floor.
    """
    target = crop_affine(structure.centre_mm, spec)
    there = np.linalg.inv(affine) @ target
    sigma = np.maximum(0, (spec.spacing_mm / np.linalg.norm(affine[:3, :3], axis=0) - 1) / 2)
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in spec.size])).reshape(3, -1)
    reached = there[:3, :3] @ corners + there[:3, 3:]
    margin = np.ceil(4 * sigma) + 1
    low = np.clip(np.floor(reached.min(axis=1) - margin), 0, array.shape).astype(int)
    high = np.clip(np.ceil(reached.max(axis=1) + margin) + 1, 0, array.shape).astype(int)
    part = np.asarray(array[tuple(map(slice, low, high))], np.float32)
    if sigma.any():
        part = ndimage.gaussian_filter(part, sigma, mode="nearest")
    floor = spec.window.center - spec.window.width / 2
    offset = there[:3, 3] - low
    values = ndimage.affine_transform(part, there[:3, :3], offset, spec.size, order=1, mode="constant", cval=floor)
    return Region(structure.label, structure.name, apply_window(values, spec.window), target)


def cut_whole(array: FloatArray, affine: Affine, structures: Iterable[Structure], spec: Regions) -> Iterator[Region]:
    """Cut one vertebra of a CT after the other; those with a fault are left out.

    ``array (D, H, W)`` in HU, ``affine (4, 4)`` its index to RAS+ millimetres, ``structures`` of
    ``find_structures`` on its grid.
    """
    return (cut(array, affine, structure, spec) for structure in structures if not structure.fault)
