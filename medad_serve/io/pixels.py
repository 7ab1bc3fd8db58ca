"""What every decoder returns."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medad_serve.io.lut import Lut
from medad_serve.spec import Window

Kind = Literal["dicom", "image", "nifti", "array"]
Triple = tuple[float, float, float]
Axes = tuple[float, float, float, float, float, float]
"""Unit directions in which a row runs (x, y, z) and in which a column runs, LPS."""


@dataclass(frozen=True)
class LeftOut:
    """A file that came with others and was not used."""

    source: int
    """Its place among the files sent, from 0."""
    reason: str


@dataclass(frozen=True)
class Facts:
    """What the file says of its pixels; nothing that names a person."""

    modality: str = ""
    body_part: str = ""
    photometric: str = "MONOCHROME2"
    transfer_syntax: str = ""
    windows: tuple[tuple[float, float], ...] = ()
    """(center, width) pairs that the file proposes, in file order."""
    voi: Lut | Window | None = None
    """By which the file itself asks to be shown."""
    localizer: bool = False
    """Whether the file says that it is a localiser (scout view), on which slices were planned."""
    rescaled: bool = True
    """Whether a DICOM file states a modality transform, by which stored values become measured ones (HU)."""
    bits: int | None = None
    """Of a stored whole number of a DICOM file (Bits Stored), PNG or JPEG."""
    stored_range: tuple[float, float] = (0.0, 1.0)
    """Smallest and largest value that the stored type can hold, rescaled."""
    position: float | None = None
    """Place of the slice along the normal of its plane, mm; of the first frame where there are several."""
    normal: Triple | None = None
    """Unit normal of the slice's plane in patient coordinates, rounded to 0.001."""
    origins: tuple[Triple, ...] = ()
    """Of a DICOM image: Image Position (Patient) of every frame, LPS mm; empty where a frame does not say."""
    axes: Axes | None = None
    """Of a DICOM image: Image Orientation (Patient), where it is one for all frames."""
    sources: tuple[int, ...] = ()
    """Of every frame of files sent together: the place of its file among them, from 0; empty for one file."""
    uneven: str = ""
    """What keeps frames whose places are known from being an even volume, e.g. ``2 slices are missing``."""
    series: str = ""
    """A digest that is equal for files of one series, study and patient (no identifier itself is kept)."""
    left_out: tuple[LeftOut, ...] = ()
    """The files sent together that are not among the frames, in the order sent."""
    notes: tuple[str, ...] = ()
    """What a reader of the answer should know, e.g. slices of a ZIP that were left out."""


@dataclass(frozen=True)
class Pixels:
    """Decoded and rescaled frames.

    ``array`` is float32 ``(frames, H, W)``, or ``(frames, H, W, 3)`` for colour, after the modality rescale
    (HU for CT). ``padding`` marks pixels that hold no measurement, with the shape of ``array``.
    ``inverted`` says that low values are shown bright (MONOCHROME1): prepare() turns them after the window,
    the order of PS3.3 C.7.6.3.1.2. ``spacing_mm`` is (between rows, between columns).
    """

    array: NDArray[np.float32]
    kind: Kind
    padding: NDArray[np.bool_] | None = None
    inverted: bool = False
    spacing_mm: tuple[float, float] | None = None
    affine: NDArray[np.float64] | None = None
    """``(4, 4)``, array index (slice, row, column) to RAS+ millimetres; None where the source does not say."""
    labels: NDArray[np.int32] | None = None
    """Label mask on the same grid, 0 background: of a scan that came with one in the same ZIP."""
    facts: Facts = field(default_factory=Facts)

    @property
    def is_color(self) -> bool:
        """Whether the frames hold three channels."""
        return self.array.ndim == 4

    @property
    def frames(self) -> int:
        """Number of frames."""
        return int(self.array.shape[0])

    def part(self, index: int, rows: slice = slice(None)) -> Pixels:
        """Return one frame, or rows of it, as views: ``(1, rows, W)``, without affine and labels of the whole."""
        padding = None if self.padding is None else self.padding[index : index + 1, rows]
        return replace(self, array=self.array[index : index + 1, rows], padding=padding, affine=None, labels=None)


def is_grey(array: NDArray[Any]) -> bool:
    """Whether the three channels (last axis) are equal everywhere."""
    return bool((array[..., 0] == array[..., 1]).all() and (array[..., 1] == array[..., 2]).all())
