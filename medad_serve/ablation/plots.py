"""Plots of an ablation: a group's variants beside each other, and what carries over between data sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from medad_serve.report.figure import drawn

Cell = Mapping[str, float | None] | None
COLUMNS = 4
PANEL = 2.6
"""Width of a panel in inches."""


def plot_group(path: Path, names: Sequence[str], figures: Sequence[tuple[str, bool, Sequence[Cell]]]) -> None:
    """Draw a panel a figure: a line a variant, its value with the interval, the best one filled.

    ``figures`` holds title, whether more is better, and the value of each of ``names``.
    """
    across = min(COLUMNS, len(figures))
    down = -(-len(figures) // across)
    label = 0.07 * max(map(len, names))
    with drawn(path, label + PANEL * across, (0.9 + 0.24 * len(names)) * down) as figure:
        axes = figure.subplots(down, across, squeeze=False, sharey=True)
        for axis, (title, rises, cells) in zip(axes.flat, figures, strict=False):
            _panel(axis, cells, rises)
            axis.set_title(f"{title} ({'more' if rises else 'less'} is better)", fontsize=7)
        for row in axes:
            row[0].set_yticks(range(len(names)), names)
            row[0].set_ylim(len(names) - 0.5, -0.5)
        for axis in list(axes.flat)[len(figures) :]:
            axis.set_axis_off()


def _panel(axis: Axes, cells: Sequence[Cell], rises: bool) -> None:
    known = [(place, cell) for place, cell in enumerate(cells) if cell and cell["value"] is not None]
    values = [float(cell["value"] or 0) for _, cell in known]
    best = (max if rises else min)(values)
    for (place, cell), value in zip(known, values, strict=True):
        low, high = (value if cell[end] is None else float(cell[end] or 0) for end in ("low", "high"))
        is_best = value == best
        axis.plot([low, high], [place, place], color="0.6", linewidth=1.2, zorder=1)
        axis.plot(value, place, "o", color="tab:blue", markerfacecolor="tab:blue" if is_best else "white", zorder=2)
    axis.xaxis.set_major_locator(MaxNLocator(4))
    axis.grid(axis="x", color="0.9")
    axis.tick_params(axis="y", length=0)


def plot_transfer(path: Path, figures: Sequence[tuple[str, bool, Mapping[tuple[str, str], float]]]) -> None:
    """Draw a matrix a figure: a line for each data set trained on, a column for each reported on, dark the better.

    ``figures`` holds title, whether more is better, and the value of each pair.
    """
    trained = list(dict.fromkeys(pair[0] for *_, matrix in figures for pair in matrix))
    reported = list(dict.fromkeys(pair[1] for *_, matrix in figures for pair in matrix))
    across = min(3, len(figures))
    down = -(-len(figures) // across)
    side = max(1.2, 0.55 * len(reported)) + 0.07 * max(map(len, trained))
    with drawn(path, (side + 0.6) * across, (side + 0.6) * down) as figure:
        axes = figure.subplots(down, across, squeeze=False)
        for axis, (title, rises, matrix) in zip(axes.flat, figures, strict=False):
            values = np.array([[matrix.get((t, r), np.nan) for r in reported] for t in trained])
            _matrix(axis, values, rises)
            axis.set(title=title + ("" if rises else "\n(less is better)"), xlabel="reported on", ylabel="trained on")
            axis.set_xticks(range(len(reported)), reported, rotation=30, ha="right")
            axis.set_yticks(range(len(trained)), trained)
        for axis in list(axes.flat)[len(figures) :]:
            axis.set_axis_off()


def _matrix(axis: Axes, values: NDArray[np.float64], rises: bool) -> None:
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    axis.imshow(values, cmap="Blues" if rises else "Blues_r", vmin=low - 1e-9, vmax=high + 1e-9)
    for (line, column), value in np.ndenumerate(values):
        text = "-" if np.isnan(value) else f"{value:.3f}"
        on_dark = value > (low + high) / 2 if rises else value < (low + high) / 2
        axis.text(column, line, text, ha="center", va="center", color="white" if on_dark else "black")
