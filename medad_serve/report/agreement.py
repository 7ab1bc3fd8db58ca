"""How decisions, probabilities and severities agree with the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from medad_serve.reliability import bins_of
from medad_serve.report.figure import ABNORMAL, NORMAL, drawn

Floats = NDArray[np.float64]
CALLS = ("normal", "anomalous")
_DARK = 0.6
"""Share from which a cell is so dark that its text is white."""
LOG_SPAN = 50
"""Positive values that span more than this factor stand on a logarithmic axis."""
_COLORS = ("black", NORMAL, ABNORMAL)


@dataclass(frozen=True)
class Confusion:
    """How the items or patients of each true class were called."""

    title: str
    called: Mapping[str, tuple[int, int]]
    """(called normal, called anomalous) by true class."""


def plot_confusion(confusions: Sequence[Confusion], path: Path) -> None:
    """Draw one matrix beside the other: counts, and shares of each true class."""
    lines = max(len(c.called) for c in confusions)
    with drawn(path, 3.2 * len(confusions), 0.9 + 0.45 * lines) as figure:
        for axis, confusion in zip(figure.subplots(1, len(confusions), squeeze=False)[0], confusions, strict=True):
            _matrix(axis, confusion)


def _matrix(axis: Axes, confusion: Confusion) -> None:
    counts = np.array(list(confusion.called.values()), np.float64)
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, column in np.ndindex(*counts.shape):
        share = shares[row, column]
        text = f"{int(counts[row, column])}  ({share:.0%})"
        axis.text(column, row, text, ha="center", va="center", color="white" if share > _DARK else "black")
    axis.set(title=confusion.title, xlabel="called", ylabel="truth")
    axis.set_xticks(range(len(CALLS)), CALLS)
    axis.set_yticks(range(len(confusion.called)), list(confusion.called))
    axis.tick_params(length=0)
    for side in axis.spines.values():
        side.set_visible(False)


@dataclass(frozen=True)
class Sureness:
    """Probabilities of one output."""

    name: str
    probability: Floats
    """``(N,)``."""
    ece: float
    """Its expected calibration error."""


def plot_reliability(outputs: Sequence[Sureness], labels: NDArray[np.int64], path: Path) -> None:
    """Draw the share of abnormal items over the probability that was said, and how often each was said."""
    with drawn(path, 3.4, 3.9) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        upper.plot([0, 1], [0, 1], color="0.7", linestyle=":", zorder=0)
        for color, output in zip(_COLORS, outputs, strict=False):
            found = bins_of(output.probability, labels)
            label = f"{output.name} (ECE {output.ece:.3f})"
            upper.plot(found.mean, found.share, marker="o", markersize=3, color=color, label=label)
            edges = np.linspace(0, 1, 16).tolist()
            lower.hist(output.probability, bins=edges, histtype="step", color=color)
        upper.set(title="reliability", ylabel="share abnormal", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        lower.set(xlabel="probability said", ylabel="items")
        upper.legend()


@dataclass(frozen=True)
class Scatter:
    """Predicted severities over what they should follow."""

    title: str
    label: str
    """Of what they should follow."""
    x: Floats
    y: Floats
    kinds: Sequence[str]
    """Class of each item, empty where there is none."""
    same_scale: bool
    """Whether both axes are severities: the diagonal is then the truth."""


def plot_severity(scatters: Sequence[Scatter], path: Path) -> None:
    """Draw one panel for each thing that the severity is held against."""
    with drawn(path, 3 * len(scatters), 2.9) as figure:
        for axis, scatter in zip(figure.subplots(1, len(scatters), squeeze=False)[0], scatters, strict=True):
            names = np.array(scatter.kinds)
            for kind in sorted(set(scatter.kinds)):
                own = names == kind
                axis.scatter(scatter.x[own], scatter.y[own], s=7, alpha=0.6, linewidths=0, label=kind or None)
            low, high = float(scatter.x.min()), float(scatter.x.max())
            if not scatter.same_scale and 0 < low * LOG_SPAN < high:
                axis.set_xscale("log")
            if scatter.same_scale:
                top = max(high, float(scatter.y.max()))
                axis.plot([0, top], [0, top], color="0.7", linestyle=":", zorder=0)
            axis.set(title=scatter.title, xlabel=scatter.label, ylabel="severity, predicted")
            if any(scatter.kinds):
                axis.legend()
