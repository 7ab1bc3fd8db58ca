"""Items on the pixels of their files: where the truth lies and what the heatmap says there."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medad_serve.data import Prepared as Data
from medad_serve.data.masks import check_mask, read_mask
from medad_serve.errors import InputError, MedadError
from medad_serve.evaluation.scoring import Scored
from medad_serve.evaluation.subject import Subject
from medad_serve.io import decode
from medad_serve.localization import PixelTally, bin_edges, pixel_figures
from medad_serve.metrics import Floats, Mask
from medad_serve.prep import Geometry, display, prepare
from medad_serve.runtime import FloatArray
from medad_serve.severity import contrast


@dataclass(frozen=True)
class Source:
    """The file of one item: a frame ``(H, W)`` or a volume ``(D, H, W)``."""

    shown: FloatArray
    """As a reader sees it, 0..1."""
    prepared: FloatArray
    """What the model was given of it, on the same pixels."""
    geometry: Geometry
    mask: Mask | None


def whole_files(data: Data) -> Mask:
    """Return which rows are all that was made of their file: no slices of a series, no regions of a scan."""
    counts = Counter(sample.path for sample in data.samples)
    return np.array([counts[sample.path] == 1 for sample in data.samples], bool)


def read_source(subject: Subject, row: int) -> Source:
    """Decode the file of a row again, as training and serving do; raises MedadError where it has changed since."""
    sample = subject.data.samples[row]
    try:
        pixels = decode(sample.path)
        prepared = prepare(pixels, subject.prep)
    except InputError as error:
        raise MedadError(f"{sample.path} cannot be read again: {error}", "Restore it") from None
    geometry = prepared.geometries[0]
    shown = display(pixels, subject.prep.window)
    mask = None if sample.mask is None else read_mask(sample.mask)
    if mask is not None and mask.shape != (shown if subject.prep.is_volume else shown[0]).shape:
        check_mask(sample.path, sample.mask or sample.path)
        raise MedadError(f"mask {sample.mask} has another size than {sample.path}", "Draw it on the image's own pixels")
    return Source(
        shown=shown if subject.prep.is_volume else shown[0],
        prepared=geometry.to_source(prepared.tensor[0, 0]),
        geometry=geometry,
        mask=mask,
    )


@dataclass(frozen=True)
class Located:
    """The items whose abnormal pixels are known: those with a mask, and healthy ones."""

    index: NDArray[np.int64]
    """Of each among the scored."""
    tally: PixelTally
    areas: Floats
    """Share of the pixels that are abnormal."""
    contrasts: Floats
    """Of the defect against the ring about it, as a share of the range from black to white; NaN without either."""
    left_out: int
    """Items of which the abnormal pixels are not known, or whose file holds several."""

    @property
    def has_contrast(self) -> Mask:
        """Which items have a defect with something about it."""
        return ~np.isnan(self.contrasts)


def locate(subject: Subject, scored: Scored) -> Located | None:
    """Hold the heatmap of every item against its mask, on the pixels of its file; None of data without masks."""
    if scored.heatmaps is None:
        return None
    whole = whole_files(subject.data)
    known = [
        whole[row] and (subject.data.samples[row].mask is not None or not subject.data.labels[row])
        for row in scored.rows
    ]
    index = np.flatnonzero(known)
    if not len(index):
        return None
    black, white = subject.prep.values
    tally = PixelTally(bin_edges(scored.heatmaps))
    areas, contrasts = np.zeros(len(index)), np.full(len(index), np.nan)
    for number, item in enumerate(index):
        source = read_source(subject, int(scored.rows[item]))
        heatmap = source.geometry.to_source(np.asarray(scored.heatmaps[item]))
        mask = np.zeros(heatmap.shape, bool) if source.mask is None else source.mask
        tally.add(heatmap, mask)
        areas[number] = mask.mean()
        if mask.any():
            contrasts[number] = contrast(source.prepared, mask) / (white - black)
    return Located(index, tally, areas, contrasts, len(scored.rows) - len(index))


def pixel_section(scored: Scored, located: Located) -> dict[str, Any]:
    """Return the figures of the heatmaps, overall and of each class."""
    owners = [scored.items.patients[i] for i in located.index]
    classes = {name: mask[located.index] for name, mask in scored.classes.items()}
    labels = (located.areas > 0).astype(int).tolist()
    return {"left_out": located.left_out, **pixel_figures(located.tally, labels, owners, classes)}
