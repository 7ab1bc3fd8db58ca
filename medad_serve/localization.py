"""How well heatmaps show where: pixel AUROC, and per-region overlap (AUPRO) as of Bergmann et al., CVPR 2020."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medad_serve.metrics import RESAMPLES, Cell, Floats, Mask, Resamples, estimate

FPR_LIMIT = 0.3
"""False-positive rate up to which the per-region overlap is integrated, as MVTec AD is reported."""
BINS = 2048
"""Of heatmap values, each with a like share of the pixels: see :meth:`PixelTally.binning_error`."""
_COARSE = 4
"""Bins taken together for the intervals."""
_SAMPLE = 2**20


def bin_edges(heatmaps: NDArray[np.float32], bins: int = BINS) -> Floats:
    """Return the inner edges of bins that hold a like share of the values of ``(N, *S)`` heatmaps.

    Of many values every n-th counts. Edges that ties make equal are one.
    """
    flat = heatmaps.reshape(-1)
    sample = np.asarray(flat[:: max(1, len(flat) // _SAMPLE)], np.float64)
    return np.unique(np.quantile(sample, np.linspace(0, 1, bins + 1)[1:-1]))


@dataclass
class PixelTally:
    """Counts of heatmap values, image by image: every figure follows from them, and of any choice of images."""

    edges: Floats
    normal: list[NDArray[np.float32]] = field(default_factory=list)
    """Pixels of each bin that are not abnormal, ``(bins,)`` an image, from the highest bin down."""
    abnormal: list[NDArray[np.float32]] = field(default_factory=list)
    overlap: list[NDArray[np.float32]] = field(default_factory=list)
    """Share of an abnormal region that each bin holds, summed over the regions of the image."""
    regions: list[int] = field(default_factory=list)

    def add(self, heatmap: NDArray[np.float32], mask: Mask) -> None:
        """Count one image or volume; both ``(*S)``. Regions are what touches, corners included."""
        size = len(self.edges) + 1
        bins = size - 1 - np.searchsorted(self.edges, heatmap.ravel(), side="right")
        labels, count = ndimage.label(mask, np.ones((3,) * mask.ndim))
        table = np.bincount(labels.ravel() * size + bins, minlength=(count + 1) * size).reshape(count + 1, size)
        marked = table[1:].astype(np.float32)
        self.normal.append(table[0].astype(np.float32))
        self.abnormal.append(marked.sum(axis=0))
        self.overlap.append((marked / marked.sum(axis=1, keepdims=True)).sum(axis=0))
        self.regions.append(int(count))

    def __len__(self) -> int:
        return len(self.normal)

    def binning_error(self) -> float:
        """Return by how much the binned pixel AUROC can differ from the exact one: values of a bin count as tied."""
        normal, abnormal = (np.sum(counts, axis=0, dtype=np.float64) for counts in (self.normal, self.abnormal))
        if not (normal.sum() and abnormal.sum()):
            return 0.0
        return float(np.sum(normal / normal.sum() * abnormal / abnormal.sum()) / 2)


@dataclass(frozen=True)
class _Counts:
    """A tally as arrays, ``(images, bins)`` and ``(images,)``."""

    normal: NDArray[np.float32]
    abnormal: NDArray[np.float32]
    overlap: NDArray[np.float32]
    regions: Floats

    @classmethod
    def of(cls, tally: PixelTally, keep: Mask, together: int = 1) -> _Counts:
        starts = np.arange(0, len(tally.edges) + 1, together)
        normal, abnormal, overlap = (
            np.add.reduceat(np.stack([p for p, kept in zip(each, keep, strict=True) if kept]), starts, axis=1)
            for each in (tally.normal, tally.abnormal, tally.overlap)
        )
        return cls(normal, abnormal, overlap, np.array(tally.regions, np.float64)[keep])

    def figures(self, weights: Floats) -> dict[str, Floats]:
        """Return ``auroc`` and ``aupro``, each ``(b,)``, of images weighted by ``(images, b)``."""
        turned = weights.T.astype(np.float32)
        off, on, covered = (_cumulated(turned @ counts) for counts in (self.normal, self.abnormal, self.overlap))
        with np.errstate(divide="ignore", invalid="ignore"):
            fpr = off / off[:, -1:]
            hits = on / on[:, -1:]
            overlap = covered / (weights.T @ self.regions)[:, None]
        return {"auroc": _area(fpr, hits, 1.0), "aupro": _area(fpr, overlap, FPR_LIMIT)}


def _cumulated(counts: NDArray[np.float32]) -> Floats:
    """Return running sums ``(b, bins + 1)``, beginning with 0."""
    out = np.zeros((len(counts), counts.shape[1] + 1))
    np.cumsum(counts, axis=1, out=out[:, 1:], dtype=np.float64)
    return out


def _area(x: Floats, y: Floats, limit: float) -> Floats:
    """Return the area under curves ``(b, points)`` for x from 0 to ``limit``, as a share of ``limit``."""
    width = np.diff(x)
    inside = np.clip(limit - x[:, :-1], 0, width)
    share = np.divide(inside, width, out=np.zeros_like(width), where=width > 0)
    middle = y[:, :-1] + np.diff(y) * share / 2
    area: Floats = (inside * middle).sum(axis=1) / limit
    return np.where(np.isnan(x[:, -1]) | np.isnan(y[:, -1]), np.nan, area)


def pixel_figures(
    tally: PixelTally,
    labels: Sequence[int],
    patients: Sequence[str],
    classes: Mapping[str, Mask] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, object]:
    """Return the images and regions counted, ``auroc`` and ``aupro`` with intervals by patient, and of each class.

    ``labels`` (1 with abnormal pixels), ``patients`` and the masks of ``classes`` are of the images in the order in
    which they were added. A class is measured with the healthy images.
    """
    marked = np.array(labels, np.int64)
    out = _figures(tally, np.ones(len(tally), bool), marked, patients, resamples, seed)
    out |= {"fpr_limit": FPR_LIMIT, "binning_error": tally.binning_error()}
    out["classes"] = {
        name: _figures(tally, mask | (marked == 0), marked, patients, resamples, seed)
        for name, mask in (classes or {}).items()
        if mask.any()
    }
    return out


def _figures(
    tally: PixelTally, keep: Mask, labels: NDArray[np.int64], patients: Sequence[str], resamples: int, seed: int
) -> dict[str, object]:
    exact, coarse = _Counts.of(tally, keep), _Counts.of(tally, keep, _COARSE)
    points = exact.figures(np.ones((int(keep.sum()), 1)))
    owners = [p for p, kept in zip(patients, keep, strict=True) if kept]
    found: dict[str, list[Floats]] = {name: [] for name in points}
    for weights in Resamples(labels[keep], owners, resamples, seed):
        for name, values in coarse.figures(weights).items():
            found[name].append(values)
    cells: dict[str, Cell] = {n: estimate(float(v[0]), np.concatenate(found[n])) for n, v in points.items()}
    return {"images": int(keep.sum()), "regions": int(exact.regions.sum()), **cells}
