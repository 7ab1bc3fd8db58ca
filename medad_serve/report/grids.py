"""Grids of what a model saw and made of it: a row an item, or a row each of three planes through a volume."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from medad_serve.report.figure import drawn

Array = NDArray[np.float32]
Place = tuple[int, int, int]
PANEL = 1.6
"""Side of a square panel in inches."""
MARGIN = 1.35
"""Width of the labels left of the grid in inches."""
IMAGES = ("input", "reconstruction")
"""Panels shown in grey on the scale of the prepared input; every other one is a map with a scale of its own."""
COLORS = {"residual": "magma", "heatmap": "inferno"}
QUANTILE = 0.999


@dataclass(frozen=True)
class Row:
    """One line of a grid."""

    label: str
    panels: Mapping[str, Array]
    """By title, each ``(H, W)`` or ``(H, W, 3)``."""
    wrong: bool = False
    """Whether the decision is not the truth: its label is red."""
    mark: tuple[int, int] | None = None
    """(row, column) of a place that is marked on the first panel."""


def three_planes(label: str, panels: Mapping[str, Array], by: str = "heatmap", wrong: bool = False) -> list[Row]:
    """Cut volumes ``(D, H, W)`` or ``(D, H, W, 3)`` through the maximum of panel ``by``: of slice, row and column.

    Slices run upward in the two last planes, as in a coronal and a sagittal view.
    """
    d, h, w = (int(i) for i in np.unravel_index(int(np.argmax(panels[by])), panels[by].shape))
    depth = panels[by].shape[0]
    # A map whose maximum is no finding (all zero) has it in the corner; the middle shows more.
    if not np.ptp(panels[by]):
        d, h, w = (size // 2 for size in panels[by].shape)
    # Copies: a view would keep the whole volume.
    return [
        Row(f"{label}\nslice {d}", {n: a[d].copy() for n, a in panels.items()}, wrong, (h, w)),
        Row(f"row {h}", {n: a[::-1, h].copy() for n, a in panels.items()}, wrong, (depth - 1 - d, w)),
        Row(f"column {w}", {n: a[::-1, :, w].copy() for n, a in panels.items()}, wrong, (depth - 1 - d, h)),
    ]


def scales(rows: Sequence[Row], value_range: tuple[float, float]) -> dict[str, tuple[float, float]]:
    """Return the range of colours of each panel, the same for every row, so that they compare.

    Maps that are nowhere negative begin at 0 and end at a high quantile; others span both ends.
    """
    out: dict[str, tuple[float, float]] = {}
    for name in rows[0].panels:
        if name in IMAGES:
            out[name] = value_range
            continue
        values = np.concatenate([row.panels[name].ravel() for row in rows])
        low = 0.0 if values.min() >= 0 else float(np.quantile(values, 1 - QUANTILE))
        high = float(np.quantile(values, QUANTILE))
        out[name] = (low, high if high > low else low + 1.0)
    return out


def plot_rows(rows: Sequence[Row], path: Path, title: str, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Draw a grid: a line for each row, a column for each panel, a colour bar below each map."""
    names = list(rows[0].panels)
    tall = [_aspect(row) * PANEL for row in rows]
    with drawn(path, MARGIN + PANEL * len(names), sum(tall) + 0.9) as figure:
        figure.suptitle(title, fontsize=9)
        grid = figure.subplots(len(rows), len(names), squeeze=False, height_ratios=tall)
        for row, axes in zip(rows, grid, strict=True):
            _draw(row, axes, ranges)
        for axis, name in zip(grid[0], names, strict=True):
            axis.set_title(name)
        for column, name in enumerate(names):
            if name not in IMAGES:
                _bar(figure, grid[:, column])


def color_map(name: str) -> str:
    """Return the colours in which the panel ``name`` is drawn."""
    return "gray" if name in IMAGES else COLORS.get(name, "viridis")


def _aspect(row: Row) -> float:
    height, width = (int(n) for n in next(iter(row.panels.values())).shape[:2])
    return min(2.0, max(0.4, height / width))


def _draw(row: Row, axes: Sequence[Axes], ranges: Mapping[str, tuple[float, float]]) -> None:
    for axis, (name, values) in zip(axes, row.panels.items(), strict=True):
        axis.set(xticks=[], yticks=[])
        for side in axis.spines.values():
            side.set_visible(False)
        low, high = ranges[name]
        style: dict[str, Any] = {"cmap": color_map(name)}
        if values.ndim == 3:
            axis.imshow(np.clip((values - low) / (high - low), 0, 1))
        else:
            axis.imshow(values, vmin=low, vmax=high, interpolation="nearest", **style)
    if row.mark is not None:
        y, x = row.mark
        axes[0].axhline(y, color="tab:cyan", linewidth=0.5, alpha=0.7)
        axes[0].axvline(x, color="tab:cyan", linewidth=0.5, alpha=0.7)
    color = "tab:red" if row.wrong else "black"
    axes[0].set_ylabel(row.label, rotation=0, ha="right", va="center", fontsize=7, color=color)


def _bar(figure: Figure, axes: NDArray[Any]) -> None:
    bar = figure.colorbar(axes[-1].images[0], ax=axes.tolist(), location="bottom", aspect=18, pad=0.01, shrink=0.9)
    bar.ax.tick_params(labelsize=6)
    bar.ax.locator_params(nbins=4)
    bar.outline.set_visible(False)
