"""The table of an ablation: its figures, as CSV, JSON and report with plots."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from medad_serve.ablation.plan import Plan, short
from medad_serve.ablation.plots import plot_group, plot_transfer
from medad_serve.ablation.study import COMMON, Row
from medad_serve.files import write_whole
from medad_serve.report import Listing, cell, write_report

TABLE, FIGURES_FILE, REPORT = "ablation.csv", "ablation.json", "report.html"


@dataclass(frozen=True)
class Figure:
    """One figure of the table and where it stands in ``metrics.json``; ``unit`` is slice or volume."""

    key: str
    title: str
    place: tuple[str, ...]
    rises: bool = True
    """Whether more is better."""
    where: Literal["terminal", "report", "file"] = "terminal"
    """How far it is shown: there, in the report and in the files; in these two; or in the files alone."""

    def of(self, metrics: dict[str, Any]) -> dict[str, float | None] | None:
        """Return value and interval, None where it was not measured."""
        found: Any = metrics
        for part in self.place:
            name = metrics.get("unit", "slice") if part == "unit" else part
            found = found.get(name) if isinstance(found, dict) else None
        return found if isinstance(found, dict) and found.get("value") is not None else None


FIGURES = (
    Figure("image_auroc", "image AUROC", ("unit", "auroc")),
    Figure("image_auprc", "image AUPRC", ("unit", "auprc")),
    Figure("image_f1", "image F1", ("unit", "f1")),
    Figure("pixel_auroc", "pixel AUROC", ("pixel", "auroc")),
    Figure("aupro", "AUPRO", ("pixel", "aupro")),
    Figure("severity_mae", "severity MAE", (COMMON, "severity", "mae"), rises=False),
    Figure("severity_spearman", "severity Spearman", (COMMON, "severity", "spearman")),
    Figure("synthetic_auroc", "synthetic AUROC", (COMMON, "auroc"), where="report"),
    Figure("synthetic_pixel_auroc", "synthetic pixel AUROC", (COMMON, "pixel_auroc"), where="file"),
    Figure("severity_true_mae", "severity MAE, real", ("severity", "true", "mae"), rises=False, where="report"),
    Figure("severity_true_spearman", "severity Spearman, real", ("severity", "true", "spearman"), where="report"),
    Figure("severity_area_spearman", "severity and area", ("severity", "area", "spearman"), where="report"),
    Figure("severity_contrast_spearman", "severity and contrast", ("severity", "contrast", "spearman"), where="report"),
    Figure("own_severity_mae", "severity MAE, own faults", ("synthetic", "severity", "mae"), rises=False, where="file"),
    Figure(
        "own_severity_spearman", "severity Spearman, own faults", ("synthetic", "severity", "spearman"), where="file"
    ),
    Figure("own_synthetic_auroc", "synthetic AUROC, own faults", ("synthetic", "auroc"), where="file"),
)
"""Synthetic figures are on faults of the base, the same for every variant; ``own``: on those of the variant itself.
``severity and area``: Spearman of the severity against the share of the image that a real defect covers."""


def records(rows: Sequence[Row], folder: Path) -> list[dict[str, Any]]:
    """Return each row as plain values; a figure is its value, ``_low`` and ``_high`` its interval."""
    out = []
    for row in rows:
        record: dict[str, Any] = {
            "group": row.variant.group,
            "variant": row.variant.name,
            "settings": " ".join(row.variant.overrides),
            "trained_on": row.variant.data,
            "reported_on": row.reported_on,
            "state": "failed" if row.error else "done",
        }
        for figure in FIGURES:
            found = figure.of(row.metrics) or {}
            record |= {
                figure.key + end: found.get(part) for end, part in (("", "value"), ("_low", "low"), ("_high", "high"))
            }
        seconds = None if row.seconds is None else round(row.seconds, 1)
        record |= {"training_seconds": seconds, "epochs": row.epochs, "parameters": row.parameters}
        record |= {"run": row.run.relative_to(folder).as_posix() if row.run else "", "error": row.error}
        out.append(record)
    return out


def write_table(plan: Plan, rows: Sequence[Row], folder: Path) -> None:
    """Write ``ablation.csv`` and ``ablation.json``."""
    found = records(rows, folder)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(found[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    write_whole(folder / TABLE, text.getvalue())
    whole = {"model": plan.model, "groups": plan.titles, "notes": plan.notes, "rows": found}
    write_whole(folder / FIGURES_FILE, json.dumps(whole, indent=1) + "\n")


def shown(rows: Sequence[Row]) -> tuple[Figure, ...]:
    """Return the figures of the report that some row has."""
    return tuple(f for f in FIGURES if f.where != "file" and any(f.of(row.metrics) for row in rows))


def listing(rows: Sequence[Row], title: str, *, whole: bool = True) -> Listing:
    """Return one group as a table; not whole it has no intervals and the figures for a terminal alone."""
    figures = [f for f in shown(rows) if whole or f.where == "terminal"]
    names = dict(zip(*_names(rows), strict=True))
    transfer = any(row.reported_on != row.variant.data for row in rows)
    head = [
        "variant",
        *(["reported on"] if transfer else []),
        *(f.title for f in figures),
        "seconds",
        "epochs",
        "parameters",
    ]
    lines = []
    for row in rows:
        line = [row.variant.name, *([names[row.reported_on]] if transfer else [])]
        if row.error:
            lines.append([*line, f"failed: {row.error}", *[""] * (len(head) - len(line) - 1)])
            continue
        found = [f.of(row.metrics) for f in figures]
        line += [cell(figure) if figure and whole else _value(figure) for figure in found]
        line += ["-" if row.seconds is None else f"{row.seconds:.0f}", str(row.epochs), f"{row.parameters:,}"]
        lines.append(line)
    return Listing(title, head, lines)


def _value(figure: dict[str, float | None] | None) -> str:
    return f"{figure['value']:.3f}" if figure else "-"


def _names(rows: Sequence[Row]) -> tuple[list[str], tuple[str, ...]]:
    sources = list(dict.fromkeys(source for row in rows for source in (row.variant.data, row.reported_on)))
    return sources, short(sources)


def write_ablation(plan: Plan, rows: Sequence[Row], folder: Path) -> Path:
    """Write table, plots and report; returns the report."""
    write_table(plan, rows, folder)
    tables, plots = [], []
    for group, title in plan.titles.items():
        own = [row for row in rows if row.variant.group == group]
        if not own:
            continue
        tables.append(listing(own, title))
        done = [row for row in own if not row.error]
        if done and (figures := shown(done)):
            path = folder / f"{group}.png"
            if any(row.reported_on != row.variant.data for row in done):
                names = dict(zip(*_names(done), strict=True))
                plot_transfer(path, [(f.title, f.rises, _matrix(done, f, names)) for f in figures])
            else:
                values = [(f.title, f.rises, [f.of(row.metrics) for row in done]) for f in figures]
                plot_group(path, [row.variant.name for row in done], values)
            plots.append((title, path))
    failed = len({str(row.variant) for row in rows if row.error})
    facts = {
        "model": plan.model,
        "variants": f"{len(plan.variants)}, of which {failed} failed",
        "runs": str(len({row.run for row in rows if row.run})),
        "intervals": "95 %, bootstrapped by patient; the best of a plot is filled, which within them means little",
        "severity": "MAE and Spearman on synthetic faults of the base, the same for every variant",
        "data": ", ".join(dict.fromkeys(row.variant.data for row in rows)),
        **{f"note {number}": note for number, note in enumerate(plan.notes, 1)},
    }
    write_report(folder / REPORT, title=f"medad-serve ablate: {plan.model}", facts=facts, tables=tables, plots=plots)
    return folder / REPORT


def _matrix(rows: Sequence[Row], figure: Figure, names: dict[str, str]) -> dict[tuple[str, str], float]:
    """Return a figure by the names of the data sets trained and reported on."""
    found = {(names[row.variant.data], names[row.reported_on]): figure.of(row.metrics) for row in rows}
    return {pair: float(f["value"]) for pair, f in found.items() if f and f["value"] is not None}
