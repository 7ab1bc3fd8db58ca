"""Where a prepared item lies on its source: maps come back along the same way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from medad_serve.prep.window import FloatArray

Box = tuple[int, int, int, int]
"""(top, left, height, width) on a source frame."""


class Geometry(Protocol):
    """Maps one prepared-size map onto the source grid."""

    def to_source(self, heatmap: FloatArray) -> FloatArray:
        """Map ``(*S)`` onto the source, ``(H, W)`` of a frame or ``(D, H, W)`` of a volume; 0 where it was cropped."""
        ...


def resize(image: FloatArray, height: int, width: int) -> FloatArray:
    """Average areas along an axis of ``(H, W)`` that shrinks, interpolate along one that grows."""
    rows, columns = image.shape
    if rows >= height and columns >= width:
        return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.float32)
    shrunk = cv2.resize(image, (min(width, columns), min(height, rows)), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(shrunk, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)


def resize_volume(volume: FloatArray, size: tuple[int, ...]) -> FloatArray:
    """Resize ``(D, H, W)``: each slice first, then each row of slices along the depth."""
    depth, height, width = size
    if volume.shape == size:
        return volume
    planes = np.stack([resize(plane, height, width) for plane in volume])
    out = np.empty(size, np.float32)
    for row in range(height):
        out[:, row] = resize(np.ascontiguousarray(planes[:, row]), depth, width)
    return out


def covered(box: Box, size: tuple[int, ...]) -> Box:
    """Return the middle part of ``box`` that has the ratio of ``size`` (H, W): as large as it can be.

    Resized to ``size`` it is what resizing the short side, then cropping the centre, leaves.
    """
    top, left, height, width = box
    scale = min(height / size[0], width / size[1])
    high, wide = (min(side, max(1, round(scale * part))) for side, part in zip((height, width), size, strict=True))
    return top + (height - high) // 2, left + (width - wide) // 2, high, wide


@dataclass(frozen=True)
class Plane:
    """A frame, or the box of it that was prepared."""

    source: tuple[int, int]
    """(H, W) of a source frame."""
    box: Box | None = None
    """Where not all of it was prepared."""

    def to_source(self, heatmap: FloatArray) -> FloatArray:
        """Map ``(h, w)`` onto the source ``(H, W)``, bilinear."""
        top, left, height, width = self.box or (0, 0, *self.source)
        there = cv2.resize(heatmap, (width, height), interpolation=cv2.INTER_LINEAR)
        if self.box is None:
            return np.asarray(there, np.float32)
        out = np.zeros(self.source, np.float32)
        out[top : top + height, left : left + width] = there
        return out


@dataclass(frozen=True)
class Volume:
    """A whole volume."""

    source: tuple[int, int, int]

    def to_source(self, heatmap: FloatArray) -> FloatArray:
        """Map ``(d, h, w)`` onto the source ``(D, H, W)``, trilinear where it grows."""
        return resize_volume(heatmap, self.source)


@dataclass(frozen=True)
class Crop:
    """A resampled crop of a volume; affines map array index to RAS+ millimetres."""

    source: tuple[int, int, int]
    source_affine: NDArray[np.float64]
    size: tuple[int, int, int]
    affine: NDArray[np.float64]
    """Of the crop at ``size`` voxels."""

    def to_source(self, heatmap: FloatArray) -> FloatArray:
        """Map ``(d, h, w)`` onto the source ``(D, H, W)``, trilinear; 0 outside the crop."""
        from scipy.ndimage import affine_transform  # costs 60 ms to import

        there = np.linalg.inv(self.affine) @ self.source_affine
        crop = resize_volume(heatmap, self.size)
        return np.asarray(
            affine_transform(crop, there[:3, :3], there[:3, 3], self.source, order=1, mode="constant"), np.float32
        )
