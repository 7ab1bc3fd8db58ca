"""Plots and the HTML report."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import RocCurveDisplay

from medad_serve.calibration import HeldOut
from medad_serve.files import write_whole

matplotlib.use("Agg")


def _save(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    write_whole(path, buffer.getvalue())


def plot_scores(data: HeldOut, cutoff: float | None, path: Path) -> None:
    """Draw score histograms of both classes with the cutoff, and the ROC curve where both are there."""
    figure = Figure(figsize=(9, 3.6))
    left, right = figure.subplots(1, 2)
    bins = np.histogram_bin_edges(data.scores, bins=40).tolist()
    for label, name, color in ((0, "healthy", "tab:blue"), (1, "abnormal", "tab:red")):
        left.hist(data.scores[data.labels == label], bins=bins, alpha=0.6, label=name, color=color)
    if cutoff is not None:
        left.axvline(cutoff, color="black", linestyle="--", label="cutoff")
    left.set(xlabel="score", ylabel="slices")
    left.legend()
    if len(np.unique(data.labels)) == 2:
        RocCurveDisplay.from_predictions(data.labels, data.scores, ax=right, plot_chance_level=True)
    _save(figure, path)


def plot_history(metrics: Path, path: Path) -> None:
    """Draw the losses and the validation AUROC of a run's ``metrics.csv``."""
    with metrics.open(newline="") as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(9, 3.6))
    left, right = figure.subplots(1, 2)
    epochs = [int(r["epoch"]) for r in rows]
    for axis, names in ((left, ("train/loss", "val/loss")), (right, ("val/auroc", "val/auprc"))):
        for name in names:
            if rows and name in rows[0]:
                axis.plot(epochs, [float(r[name]) for r in rows], label=name)
        axis.set_xlabel("epoch")
        axis.legend()
    left.set_yscale("log")
    _save(figure, path)


@dataclass(frozen=True)
class Shown:
    """One row of a report: what was sent, what came back, and its overlay."""

    name: str
    truth: str
    answer: str
    score: float
    p_value: float
    correct: bool
    overlay: Path | None


_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.3rem .8rem;border-bottom:1px solid #ddd;text-align:left}
img{max-width:100%}figure{display:inline-block;margin:.4rem;width:14rem}figcaption{font-size:13px}.wrong{color:#b00}"""


def _image(path: Path, alt: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{data}">'


def _table(rows: Sequence[Sequence[str]], head: Sequence[str]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(c)}</{tag}>" for c in cells) + "</tr>"

    return "<table>" + line(head, "th") + "".join(line(r, "td") for r in rows) + "</table>"


def write_report(
    path: Path,
    *,
    title: str,
    facts: dict[str, str],
    plots: Sequence[tuple[str, Path]],
    shown: Sequence[Shown],
) -> None:
    """Write one self-contained HTML file: figures of the run, plots, and the overlays with their decisions."""
    parts = [f"<h1>{escape(title)}</h1>", _table(list(facts.items()), ("measured", "value"))]
    parts += [f"<h2>{escape(name)}</h2>{_image(file, name)}" for name, file in plots]
    parts.append("<h2>Answers over HTTP</h2>")
    for row in shown:
        if row.overlay is None:
            continue
        text = f"{row.truth} &rarr; {escape(row.answer)}, score {row.score:.5f}, p = {row.p_value:.3f}"
        css = "" if row.correct else ' class="wrong"'
        parts.append(f"<figure>{_image(row.overlay, row.name)}<figcaption{css}>{text}</figcaption></figure>")
    body = "\n".join(parts)
    write_whole(
        path,
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style><body>{body}</body></html>\n",
    )
