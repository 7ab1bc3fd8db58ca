"""Decoded pixels to the model's tensor: the one preparation that training, export, benchmark and server share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from medad_serve.errors import InputError
from medad_serve.io import Pixels
from medad_serve.spec import InputSpec, PrepSpec, Window

FloatArray = NDArray[np.float32]
STRIPS = 4


@dataclass(frozen=True)
class Geometry:
    """Where a prepared tensor lies on its source."""

    source: tuple[int, int]
    """(H, W) of a source frame."""

    def to_source(self, heatmap: FloatArray) -> FloatArray:
        """Map one prepared-size map ``(h, w)`` onto the source pixels ``(H, W)``, bilinear."""
        height, width = self.source
        return np.asarray(cv2.resize(heatmap, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)


@dataclass(frozen=True)
class Prepared:
    """``tensor`` is float32 ``(frames, C, H, W)``, one item per source frame."""

    tensor: FloatArray
    geometry: Geometry


def apply_window(values: FloatArray, window: Window) -> FloatArray:
    """Map rescaled values (HU for CT) to [0, 1] by the VOI LUT function of PS3.3 C.11.2.1.2.

    ``values`` has any shape; a new float32 array of that shape is returned. NaN stays NaN.
    """
    if window.function == "SIGMOID":  # C.11.2.1.3.1
        with np.errstate(over="ignore"):
            return np.asarray(1 / (1 + np.exp(-4 * (values - window.center) / window.width)), np.float32)
    exact = window.function == "LINEAR_EXACT"  # C.11.2.1.3.2
    center, width = (window.center, window.width) if exact else (window.center - 0.5, window.width - 1)
    if width == 0:  # LINEAR with width 1 is a step
        return np.where(np.isnan(values), values, values > center).astype(np.float32)
    return _scaled(values, center - width / 2, center + width / 2)


def _scaled(values: FloatArray, low: float, high: float) -> FloatArray:
    """Map [low, high] to [0, 1] and clip, in place on one new array."""
    out = np.multiply(values, np.float32(1 / (high - low)))
    out += np.float32(-low / (high - low))
    return np.clip(out, np.float32(0), np.float32(1), out=out)


def display(pixels: Pixels, window: Window | None) -> FloatArray:
    """Return ``(frames, H, W)`` in [0, 1] as a reader sees it: windowed, MONOCHROME1 turned, padding black.

    Without a window the full range of the stored type is used.
    """
    out = _scaled(pixels.array, *pixels.facts.stored_range) if window is None else apply_window(pixels.array, window)
    if pixels.inverted:
        np.subtract(np.float32(1), out, out=out)
    if pixels.padding is not None:
        out[pixels.padding] = 0
    return out


def check_input(pixels: Pixels, spec: InputSpec) -> None:
    """Refuse, with 422 and the reason, pixels that the model was not made for."""
    facts = pixels.facts
    if pixels.is_color:
        raise InputError(422, "the image is in colour", "Send a grayscale image")
    if spec.modalities and facts.modality not in spec.modalities:
        found = f"modality {facts.modality}" if facts.modality else f"file without a modality ({pixels.kind})"
        wanted = " or ".join(spec.modalities)
        raise InputError(422, f"the model reads {wanted}, this is a {found}", f"Send {wanted} as DICOM")
    if spec.body_parts and facts.body_part and facts.body_part not in spec.body_parts:
        raise InputError(
            422,
            "(0018,0015) Body Part Examined is not one that the model was made for",
            f"Send one of {', '.join(spec.body_parts)}",
        )
    if min(pixels.array.shape[1:3]) < spec.min_size:
        rows, columns = pixels.array.shape[1:3]
        raise InputError(422, f"the image is {rows}x{columns} pixels", f"Send at least {spec.min_size}x{spec.min_size}")


def _resize(image: FloatArray, height: int, width: int) -> FloatArray:
    """Average areas along an axis that shrinks, interpolate along one that grows."""
    rows, columns = image.shape
    if rows >= height and columns >= width:
        return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.float32)
    shrunk = cv2.resize(image, (min(width, columns), min(height, rows)), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(shrunk, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)


def _strips(source: int, target: int) -> Iterator[tuple[slice, slice]]:
    """Yield source rows and the target rows made of them alone: one pair, or several where the ratio is whole.

    A strip stays in the processor's cache and in memory that the allocator keeps: preparing a 512x512 slice
    whole took 2.6 times as long, most of it page faults.
    """
    count = STRIPS if source % target == 0 and target % STRIPS == 0 else 1
    for index in range(count):
        rows, out = source // count, target // count
        yield slice(index * rows, (index + 1) * rows), slice(index * out, (index + 1) * out)


def prepare(pixels: Pixels, spec: PrepSpec) -> Prepared:
    """Window, resize and scale every frame.

    Down-scaling averages areas (antialiased; equals torch's area interpolation at integer ratios), up-scaling
    is bilinear. Raises InputError 422 for colour and for NaN.
    """
    if pixels.is_color:
        raise InputError(422, "the image is in colour", "Send a grayscale image")
    height, width = spec.size
    source = (int(pixels.array.shape[1]), int(pixels.array.shape[2]))
    tensor = np.empty((pixels.frames, 1, height, width), np.float32)
    for index, target in enumerate(tensor[:, 0]):
        for rows, out in _strips(source[0], height):
            shown = display(pixels.part(index, rows), spec.window)[0]
            target[out] = _resize(shown, out.stop - out.start, width)
    if not np.isfinite(tensor).all():
        raise InputError(422, "the pixel values are not all numbers", "Send an image without NaN")
    low, high = spec.output_range
    if (low, high) != (0.0, 1.0):
        tensor *= np.float32(high - low)
        tensor += np.float32(low)
    return Prepared(tensor, Geometry(source))
