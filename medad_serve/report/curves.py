"""Curves of training, and how the scores of two classes lie."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullFormatter
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from medad_serve.calibration import HeldOut
from medad_serve.report.figure import ABNORMAL, NORMAL, drawn

COLUMNS = 3
ROLES = ("train", "val", "held_out")
"""Who a logged figure was measured on: it stands before the figure's name, ``val/loss`` or ``prior_train_nll``."""
AREAS = ("auroc", "auprc")
FALLING = ("loss", "nll")
LOG_SPAN = 20
"""Positive losses that span more than this factor are drawn on a logarithmic scale."""
MAX_BINS = 40
_MARKED = 12
"""Fewest points that are a line without markers."""


def _columns(file: Path) -> tuple[dict[str, list[float]], list[float]]:
    """Return the values of each column (NaN where a row has none) and the epoch of each row."""
    with file.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    columns = {name: [_number(r.get(name)) for r in rows] for name in (rows[0] if rows else {})}
    steps = next((columns.pop(name) for name in list(columns) if name.endswith("epoch")), [])
    return columns, steps or [float(i) for i in range(len(rows))]


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def constants(file: Path) -> dict[str, float]:
    """Return the columns of a log that hold one value, e.g. the mean of a score on held-out normals."""
    columns, _ = _columns(file)
    known = {name: [v for v in values if math.isfinite(v)] for name, values in columns.items()}
    return {name: values[0] for name, values in known.items() if len(values) == 1}


def _quantity(name: str) -> str:
    """Return what is measured, without on whom: ``val/loss`` is ``loss``, ``prior_train_nll`` is ``prior_nll``."""
    if name.endswith(AREAS):
        return "AUROC and AUPRC"
    for role in ROLES:
        name = name.replace(f"{role}/", "").replace(f"{role}_", "")
    return name.replace("_", " ")


def _panels(columns: dict[str, list[float]]) -> dict[str, dict[str, list[float]]]:
    """Group the columns that vary by what they measure; the loss comes first, the areas last.

    A column that repeats another is left out: the only term of a loss, patients of one slice each.
    """
    panels: dict[str, dict[str, list[float]]] = {}
    seen: list[NDArray[np.float64]] = []
    for name, values in sorted(columns.items(), key=lambda c: ("patient" in c[0], _quantity(c[0]) != "loss")):
        repeats = any(np.array_equal(values, other, equal_nan=True) for other in seen)
        if not repeats and (sum(math.isfinite(v) for v in values) > 1 or len(values) == 1):
            seen.append(np.array(values))
            panels.setdefault(_quantity(name), {})[name] = values
    return dict(sorted(panels.items(), key=lambda p: (p[0] != "loss", "AU" in p[0], "loss" not in p[0], p[0])))


def plot_history(log: Path, path: Path) -> bool:
    """Draw every column of a CSV log over its epochs, a panel for each quantity; returns whether there is any."""
    columns, steps = _columns(log)
    panels = _panels(columns)
    if not panels:
        return False
    across = min(COLUMNS, len(panels))
    lines = -(-len(panels) // across)
    with drawn(path, 3 * across, 2.5 * lines) as figure:
        axes = figure.subplots(lines, across, squeeze=False).ravel()
        for axis, (quantity, curves) in zip(axes, panels.items(), strict=False):
            for name, values in curves.items():
                style = "--" if "patient" in name else "-"
                axis.plot(steps, values, style, label=name, marker="." if len(steps) < _MARKED else None)
            axis.set(title=quantity, xlabel="epoch")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            axis.legend()
            if quantity.endswith(FALLING):
                _scale(axis, list(curves.values()))
        for axis in axes[len(panels) :]:
            axis.set_axis_off()
    return True


def _scale(axis: Axes, curves: list[list[float]]) -> None:
    known = [v for values in curves for v in values if math.isfinite(v)]
    if known and min(known) > 0 and max(known) > LOG_SPAN * min(known):
        axis.set_yscale("log")
        axis.yaxis.set_minor_formatter(NullFormatter())


def plot_scores(
    data: HeldOut,
    cutoff: float | None,
    path: Path,
    *,
    unit: str = "slice",
    classes: Mapping[str, NDArray[np.bool_]] | None = None,
) -> None:
    """Draw score histograms with the cutoff, and ROC and PR curves where normals and abnormals are there.

    ``classes`` marks the abnormal items of each class: each has a curve of its own beside that of all.
    """
    with drawn(path, 9, 2.9) as figure:
        left, middle, right = figure.subplots(1, 3)
        _histogram(left, data, cutoff, unit)
        shown = dict(classes or {})
        parts = {"all abnormal": data.labels == 1, **(shown if len(shown) > 1 else {})}
        for axis, text in ((middle, "ROC"), (right, "precision and recall")):
            axis.set(title=text, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        if len(np.unique(data.labels)) < 2:
            for axis in (middle, right):
                axis.text(0.5, 0.5, "takes normals and abnormals", ha="center", va="center")
            return
        for name, mask in parts.items():
            keep = mask | (data.labels == 0)
            _curves(middle, right, name, data.scores[keep], data.labels[keep], name == "all abnormal")
        middle.plot([0, 1], [0, 1], color="0.7", linestyle=":", zorder=0)
        middle.set(xlabel="1 - specificity", ylabel="sensitivity")
        right.axhline(float(np.mean(data.labels)), color="0.7", linestyle=":", zorder=0)
        right.set(xlabel="recall", ylabel="precision")
        if cutoff is not None:
            _operating_point(middle, right, data, cutoff)
        for axis in (middle, right):
            axis.legend()


def _histogram(axis: Axes, data: HeldOut, cutoff: float | None, unit: str) -> None:
    count = int(np.clip(2 * math.sqrt(len(data.scores)), 10, MAX_BINS))
    bins = np.histogram_bin_edges(data.scores, bins=count).tolist()
    for label, name, color in ((0, "normal", NORMAL), (1, "abnormal", ABNORMAL)):
        scores = data.scores[data.labels == label]
        if len(scores):
            axis.hist(scores, bins=bins, alpha=0.6, label=f"{name} ({len(scores)})", color=color)
    if cutoff is not None:
        axis.axvline(cutoff, color="black", linestyle="--", linewidth=1, label="cutoff")
    axis.set(title=f"scores by {unit}", xlabel="score", ylabel=f"{unit}s")
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend()


def _curves(
    roc: Axes, pr: Axes, name: str, scores: NDArray[np.float64], labels: NDArray[np.int64], whole: bool
) -> None:
    style = {"color": "black", "zorder": 3} if whole else {"alpha": 0.8}
    off, on, _ = roc_curve(labels, scores)
    roc.plot(off, on, label=f"{name} ({roc_auc_score(labels, scores):.3f})", **style)
    precision, recall, _ = precision_recall_curve(labels, scores)
    average = average_precision_score(labels, scores)
    pr.step(recall, precision, where="post", label=f"{name} ({average:.3f})", **style)


def _operating_point(roc: Axes, pr: Axes, data: HeldOut, cutoff: float) -> None:
    called, sick = data.scores >= cutoff, data.labels == 1
    hit = float(np.mean(called[sick]))
    roc.plot([float(np.mean(called[~sick]))], [hit], "o", color="black", markersize=4, label="cutoff", zorder=4)
    if called.any():
        pr.plot([hit], [float(np.mean(sick[called]))], "o", color="black", markersize=4, label="cutoff", zorder=4)
