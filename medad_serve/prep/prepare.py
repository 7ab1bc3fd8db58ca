"""``prepare``: frames or volumes to the model's tensor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from medad_serve.errors import InputError
from medad_serve.io import Pixels
from medad_serve.prep.check import by_region
from medad_serve.prep.geometry import Crop, Geometry, Plane, Volume, covered, resize, resize_volume
from medad_serve.prep.window import FloatArray, cut, display, normalized
from medad_serve.spec import PrepSpec

STRIPS = 4


@dataclass(frozen=True)
class Prepared:
    """What a model is given of one source.

    ``tensor`` is float32 ``(items, C, *S)``: an item is a frame, a volume, or a labelled region of a volume.
    """

    tensor: FloatArray
    geometries: tuple[Geometry, ...]
    """One an item."""
    regions: tuple[str, ...] = ()
    """Names of the regions, where the items are some."""
    notes: tuple[str, ...] = ()


def _strips(source: int, target: int) -> Iterator[tuple[slice, slice]]:
    """Yield source rows and the target rows made of them alone: one pair, or several where the ratio is whole.

    A strip stays in the processor's cache and in memory that the allocator keeps: preparing a 512x512 slice
    whole took 2.6 times as long, most of it page faults.
    """
    count = STRIPS if source % target == 0 and target % STRIPS == 0 else 1
    for index in range(count):
        rows, out = source // count, target // count
        yield slice(index * rows, (index + 1) * rows), slice(index * out, (index + 1) * out)


def _frame(pixels: Pixels, index: int, spec: PrepSpec, out: FloatArray) -> Plane:
    """Fill ``out`` (H, W) with one frame."""
    height, width = spec.size
    rows, columns = pixels.array.shape[1:3]
    plain = spec.foreground is None and spec.normalize is None and not spec.smooth_sigma
    if plain and spec.fit == "stretch":
        for part, place in _strips(rows, height):
            grey = cut(pixels.part(index, part), spec.window)
            out[place] = grey.scaled(resize(grey.values[0], place.stop - place.start, width))
        return Plane((rows, columns))
    shown, box = display(pixels.part(index), spec.window)[0], None
    if spec.foreground is not None:
        from medad_serve.prep.foreground import foreground_box

        box = foreground_box(shown, spec.foreground)
    if spec.fit == "cover":
        box = covered(box or (0, 0, rows, columns), spec.size)
    if box is not None:
        top, left, high, wide = box
        shown = np.ascontiguousarray(shown[top : top + high, left : left + wide])
    if spec.smooth_sigma:
        shown = np.asarray(cv2.GaussianBlur(shown, (0, 0), spec.smooth_sigma), np.float32)
    if spec.normalize is not None:
        shown = normalized(shown, spec.normalize)
    # weights of an area that do not sum to 1 exactly leave the scale by a rounding
    np.clip(resize(shown, height, width), np.float32(0), np.float32(1), out=out)
    return Plane((rows, columns), box)


def _frames(pixels: Pixels, spec: PrepSpec) -> Prepared:
    tensor = np.empty((pixels.frames, 1, *spec.size), np.float32)
    geometries = tuple(_frame(pixels, index, spec, out) for index, out in enumerate(tensor[:, 0]))
    return Prepared(tensor, geometries)


def _volume(pixels: Pixels, spec: PrepSpec) -> Prepared:
    depth, height, width = pixels.array.shape
    grey = cut(pixels, spec.window)
    if spec.normalize is None:
        volume = grey.scaled(resize_volume(grey.values, spec.size))
    else:
        volume = resize_volume(normalized(grey.shown(), spec.normalize), spec.size)
    return Prepared(volume[None, None], (Volume((depth, height, width)),))


def _regions(pixels: Pixels, spec: PrepSpec) -> Prepared:
    from medad_serve.prep.regions import cut_whole, find_structures, measured  # loads scipy

    if pixels.labels is None or pixels.affine is None or spec.regions is None:
        raise InputError(422, "the scan has no affine", "Send a scan that states its spacing and orientation")
    structures = find_structures(pixels.labels, pixels.affine, spec.regions)
    found = list(cut_whole(measured(pixels, spec.regions), pixels.affine, structures, spec.regions))
    if not found:
        raise InputError(422, "the mask marks no structure that lies whole in the scan", "Send a larger scan")
    depth, height, width = pixels.array.shape
    tensor = np.stack([resize_volume(region.volume, spec.size) for region in found])[:, None]
    geometries = tuple(
        Crop((depth, height, width), pixels.affine, spec.regions.size, region.affine) for region in found
    )
    notes = tuple(f"{s.name} {s.fault} and was left out" for s in structures if s.fault)
    return Prepared(tensor, geometries, tuple(region.name for region in found), notes)


def prepare(pixels: Pixels, spec: PrepSpec) -> Prepared:
    """Window, crop, normalise, resize and scale every item.

    Down-scaling averages areas (antialiased; equals torch's area interpolation at integer ratios), up-scaling
    is linear. Raises InputError 422 for colour, for NaN, and where a label mask marks nothing usable.
    """
    if pixels.is_color:
        raise InputError(422, "the image is in colour", "Send a grayscale image")
    steps = _regions if by_region(pixels, spec) else _volume if spec.is_volume else _frames
    prepared = steps(pixels, spec)
    tensor = prepared.tensor
    if not np.isfinite(tensor).all():
        raise InputError(422, "the pixel values are not all numbers", "Send an image without NaN")
    low, high = spec.values
    if (low, high) != (0.0, 1.0):
        tensor *= np.float32(high - low)
        tensor += np.float32(low)
    return prepared
