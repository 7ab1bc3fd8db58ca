"""``train``, ``export`` and ``evaluate``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape
from rich.table import Table as RichTable

from medad_serve.cli.console import decoding, err, out, say, table
from medad_serve.errors import MedadError

if TYPE_CHECKING:
    from medad_serve.data import Prepared
    from medad_serve.training.run import Run


@click.command()
@click.argument("model", required=False)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--data", help="Layout and folder, e.g. cq500:DIR.")
@click.option("--config", help="A recipe that comes with the package, or a YAML file.")
@click.option("--runs", type=click.Path(path_type=Path), default=Path("runs"), show_default=True)
@click.option("--resume", type=click.Path(path_type=Path), help="Go on with a run that was stopped.")
@click.option("--folds", type=click.Choice(["all"]), help="Cross-validate: train every fold, report them together.")
def train(
    model: str | None,
    overrides: tuple[str, ...],
    data: str | None,
    config: str | None,
    runs: Path,
    resume: Path | None,
    folds: str | None,
) -> None:
    """Train MODEL, or that of --config, on the healthy patients of a data set.

    Settings such as train.max_epochs=20 or settings.latent_dim=32 override defaults and --config; fold=1 trains
    one fold of a cross-validation. A run that was stopped goes on with --resume RUN.
    """
    if resume is not None and (model or overrides or data or config or folds):
        raise click.UsageError("--resume takes the configuration of the run; name nothing else")
    if not (resume or model or config):
        raise click.UsageError("name a model; 'medad-serve info' lists them")

    from medad_serve.training.config import model_named, resolve
    from medad_serve.training.run import create_run, open_run

    if resume:
        run = open_run(resume)
    else:
        name, overrides = model_named(model, config, overrides)
        if folds:
            _train_folds(name, data, config, overrides, runs)
            return
        run = create_run(resolve(name, data, config, overrides), runs)
    _train_one(run)
    out.print(str(run.path), markup=False)


def _train_one(run: Run) -> Prepared:
    """Train one run to its end; return its data."""
    from medad_serve.report import plot_history
    from medad_serve.training.fit import fit
    from medad_serve.training.run import METRICS

    say(f"run {run.path}")
    for note in run.table().notes:
        say(f"data: {note}")
    prepared = run.prepared(decoding)
    for fault in prepared.faults:
        say(f"left out: {fault}")
    fit(run, prepared, say)
    plot_history(run.path / METRICS, run.path / "history.png")
    return prepared


def _train_folds(model: str, data: str | None, config: str | None, overrides: tuple[str, ...], runs: Path) -> None:
    """Train a run a fold, going on with those that are there, and show what they score together."""
    from medad_serve.crossvalidation import write_folds
    from medad_serve.report import cell
    from medad_serve.training.config import resolve
    from medad_serve.training.run import create_run, same_run

    count = resolve(model, data, config, overrides).split.folds
    made = []
    for number in range(1, count + 1):
        say(f"fold {number} of {count}")
        resolved = resolve(model, data, config, [*overrides, f"fold={number}"])
        made.append(same_run(resolved, runs) or create_run(resolved, runs))
        prepared = _train_one(made[-1])
    figures, written = write_folds(made, prepared)
    rows = table(f"{count} folds, {figures['test_patients']} test patients", "score", "AUROC, mean of folds", "pooled")
    for name, found in {model: figures, **{f"baseline: {n}": f for n, f in figures["baselines"].items()}}.items():
        each = found["auroc"]
        rows.add_row(name, f"{each['mean']:.3f} +- {each['sd']:.3f}", cell(found["pooled"]["auroc"]))
    out.print(rows)
    out.print(str(written), markup=False)


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "formats",
    multiple=True,
    default=("onnx",),
    show_default=True,
    help="onnx, torchscript; repeatable.",
)
@click.option("--name", help="Name of the served model [default: the experiment's].")
@click.option("--model-version", default="1.0", show_default=True)
def export(run: Path, formats: tuple[str, ...], name: str | None, model_version: str) -> None:
    """Export RUN to RUN/artifact: calibrated, and proven to score as the trained model does."""
    from medad_serve.evaluation import export_run
    from medad_serve.training.run import open_run

    opened = open_run(run)
    artifact = export_run(opened, formats, name=name, version=model_version, say=say, progress=decoding)
    out.print(str(artifact), markup=False)


RANKING = ("auroc", "auprc")
DECISIONS = ("sensitivity", "specificity", "precision", "f1", "accuracy")


def _parts(metrics: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield both levels, each followed by its classes where there are several."""
    for level in (metrics["unit"], "patient"):
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


@click.command()
@click.argument("path", metavar="RUN|ARTIFACT", type=click.Path(path_type=Path))
@click.option("--data", help="Layout and folder [default: the data of the run, test patients].")
@click.option("--runtime", help="onnx or torchscript [default: eager for a run, onnx for an artifact].")
@click.option("--policy", help="Cutoff policy [default: the model's].")
@click.option("--out", "target", type=click.Path(path_type=Path), help="Where metrics.json goes.")
@click.option("--json", "as_json", is_flag=True, help="Print the metrics as JSON.")
def evaluate(
    path: Path, data: str | None, runtime: str | None, policy: str | None, target: Path | None, as_json: bool
) -> None:
    """Measure how well scores separate and decisions agree, overall and per class, with intervals.

    Beside the score stand its components, where the model has some, and trivial baselines.
    """
    if not path.is_dir():
        raise MedadError(f"{path} is no folder", "Name a run or an artifact, e.g. runs/ae")

    from medad_serve.evaluation import evaluate as measure

    metrics, written = measure(path, data=data, runtime=runtime, policy=policy, out=target, progress=decoding)
    if as_json:
        out.print(json.dumps(metrics, indent=1), markup=False)
    else:
        out.print(_ranking(metrics))
        out.print()
        out.print(_decisions(metrics))
        err.print(f"written to {written}", markup=False)
