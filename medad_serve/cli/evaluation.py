"""``evaluate``: what a model reaches, as tables."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape
from rich.table import Table as RichTable

from medad_serve.cli.console import decoding, err, out, table
from medad_serve.errors import MedadError

if TYPE_CHECKING:
    from medad_serve.evaluation import Outcome

RANKING = ("auroc", "auprc")
HEADLINES = {
    "pixel AUROC": ("pixel", "auroc"),
    "AUPRO": ("pixel", "aupro"),
    "severity Spearman": ("severity", "true", "spearman"),
    "ECE": ("probability", "probability", "ece"),
}
"""Figures of a data set beside those of its scores, by their place in the metrics."""
DECISIONS = ("sensitivity", "specificity", "precision", "f1", "accuracy")


def _parts(metrics: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield both levels (where a patient can have several items), each followed by its classes if several."""
    from medad_serve.report import levels

    for level in levels(metrics):
        yield level, metrics[level]
        classes = metrics[level]["classes"]
        yield from ((f"{level}: {name}", found) for name, found in classes.items() if len(classes) > 1)


def _ranking(metrics: dict[str, Any]) -> RichTable:
    from medad_serve.report import cell

    rows = table(f"{metrics['runtime']}, {metrics['split']} patients", "level", "normal", "abnormal", "AUROC", "AUPRC")
    for name, found in _parts(metrics):
        counts = (str(found["normal"]), str(found["abnormal"]))
        rows.add_row(escape(name), *counts, *(cell(found[figure]) for figure in RANKING))
    for name, found in metrics["scores"].items():
        rows.add_row(name, "", "", cell(found["auroc"]))
    for name, found in metrics["baselines"].items():
        rows.add_row(f"baseline: {name}", "", "", cell(found["auroc"]))
    return rows


def _decisions(metrics: dict[str, Any]) -> RichTable:
    from medad_serve.report import cell

    made = metrics["calibration"]["method"].replace("_", " ")
    rows = table(f"at the cutoff {metrics['policy']}, calibrated {made}", "level", *DECISIONS)
    for name, found in _parts(metrics):
        rows.add_row(escape(name), *(cell(found[figure]) for figure in DECISIONS))
    return rows


def _at(metrics: dict[str, Any], place: Sequence[str]) -> dict[str, Any] | None:
    """Return a figure by its place in the metrics, None where it was not found."""
    found: dict[str, Any] | None = metrics
    for name in place:
        found = found.get(name) if found else None
    return found


def domains(outcomes: Sequence[Outcome]) -> RichTable:
    """Return a table with one line for each data set."""
    from medad_serve.report import cell

    unit = outcomes[0].metrics["unit"]
    always = {"AUROC": (unit, "auroc"), "F1": (unit, "f1")}
    found = {title: place for title, place in HEADLINES.items() if any(_at(o.metrics, place) for o in outcomes)}
    columns = {**always, **found}
    rows = table(f"{unit}s of every data set", "data", "normal", "abnormal", *columns)
    for outcome in outcomes:
        layout, _, directory = outcome.data.partition(":")
        figures = [_at(outcome.metrics, place) for place in columns.values()]
        cells = [cell(figure) if figure else "-" for figure in figures]
        of_unit = outcome.metrics[unit]
        name = f"{layout}:{Path(directory).name}"
        rows.add_row(escape(name), str(of_unit["normal"]), str(of_unit["abnormal"]), *cells)
    return rows


@click.command()
@click.argument("path", metavar="RUN|ARTIFACT", type=click.Path(path_type=Path))
@click.option(
    "--data", multiple=True, help="Layout and folder; repeatable [default: the run's test patients, and report_on]."
)
@click.option("--runtime", help="e.g. onnx, openvino/int8 [default: eager for a run, onnx for an artifact].")
@click.option("--policy", help="Cutoff policy [default: the model's].")
@click.option("--out", "target", type=click.Path(path_type=Path), help="Where metrics.json goes, of one --data.")
@click.option("--json", "as_json", is_flag=True, help="Print the metrics as JSON.")
def evaluate(
    path: Path, data: tuple[str, ...], runtime: str | None, policy: str | None, target: Path | None, as_json: bool
) -> None:
    """Measure how well scores separate and decisions agree, overall and per class, with intervals.

    Beside the score stand its components, where the model has some, and trivial baselines; where the data have
    masks, how well heatmaps show the place; where the model tells severity or probability, how well these agree.
    Files that made the model are left out; of other data its test counts, or where it names none all of it.
    Figures of every policy go to figures.csv, plots and pixel maps to report.html beside metrics.json.
    """
    if not path.is_dir():
        raise MedadError(f"{path} is no folder", "Name a run or an artifact, e.g. runs/ae")
    if target and len(data) > 1:
        raise click.UsageError("--out names one file; name one --data")

    from medad_serve.evaluation import Outcome, evaluate_all
    from medad_serve.evaluation import evaluate as measure

    if target:
        source = data[0] if data else None
        found = measure(path, data=source, runtime=runtime, policy=policy, out=target, progress=decoding)
        outcomes = [Outcome(source or "", *found)]
    else:
        outcomes = evaluate_all(path, data, runtime=runtime, policy=policy, progress=decoding)
    if as_json:
        by_data = {outcome.data: outcome.metrics for outcome in outcomes}
        out.print(json.dumps(by_data if len(outcomes) > 1 else outcomes[0].metrics, indent=1), markup=False)
        return
    _show(outcomes[0].metrics)
    if len(outcomes) > 1:
        out.print()
        out.print(domains(outcomes))
    for outcome in outcomes:
        err.print(f"written to {outcome.file}", markup=False)


def _show(metrics: dict[str, Any]) -> None:
    """Print the tables of one data set."""
    from medad_serve.report import study_listings

    out.print(_ranking(metrics))
    out.print()
    out.print(_decisions(metrics))
    for listing in study_listings(metrics):
        rows = table(listing.title, *listing.head)
        for row in listing.rows:
            rows.add_row(*map(escape, row))
        out.print()
        out.print(rows)
