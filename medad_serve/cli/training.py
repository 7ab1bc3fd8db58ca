"""``train`` and ``export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from medad_serve.cli.console import decoding, out, say, table

if TYPE_CHECKING:
    from medad_serve.data import Prepared
    from medad_serve.training.run import Run


@click.command()
@click.argument("model", required=False)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--data", multiple=True, help="Layout and folder, e.g. cq500:DIR; further ones are only reported on at the end."
)
@click.option("--config", help="A recipe that comes with the package, or a YAML file.")
@click.option("--runs", type=click.Path(path_type=Path), default=Path("runs"), show_default=True)
@click.option("--resume", type=click.Path(path_type=Path), help="Go on with a run that was stopped.")
@click.option("--folds", type=click.Choice(["all"]), help="Cross-validate: train every fold, report them together.")
def train(
    model: str | None,
    overrides: tuple[str, ...],
    data: tuple[str, ...],
    config: str | None,
    runs: Path,
    resume: Path | None,
    folds: str | None,
) -> None:
    """Train MODEL, or that of --config, on the healthy patients of a data set.

    Settings such as train.max_epochs=20 or settings.latent_dim=32 override defaults and --config; fold=1 trains
    one fold of a cross-validation. A run that was stopped goes on with --resume RUN.

    Of several --data the first trains; what it scores on the test images of each is shown at the end.
    """
    if resume is not None and (model or overrides or data or config or folds):
        raise click.UsageError("--resume takes the configuration of the run; name nothing else")
    if not (resume or model or config):
        raise click.UsageError("name a model; 'medad-serve info' lists them")
    if folds and len(data) > 1:
        raise click.UsageError("--folds all divides one data set; name one --data")

    from medad_serve.training.config import model_named, resolve
    from medad_serve.training.run import create_run, open_run

    if resume:
        run = open_run(resume)
    else:
        name, overrides = model_named(model, config, overrides)
        if folds:
            _train_folds(name, data[0] if data else None, config, overrides, runs)
            return
        run = create_run(resolve(name, data[0] if data else None, config, overrides, data[1:]), runs)
    _train_one(run)
    if run.config.report_on:
        from medad_serve.cli.evaluation import domains
        from medad_serve.evaluation import evaluate_all

        out.print(domains(evaluate_all(run.path, progress=decoding)))
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
    help="RUNTIME[/PRECISION]: onnx, torchscript, openvino; /float16, /bfloat16, /int8, ...; or all. Repeatable.",
)
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda: where cutoffs are made (float16: cuda).")
@click.option("--name", help="Name of the served model [default: the experiment's].")
@click.option("--model-version", default="1.0", show_default=True)
def export(run: Path, formats: tuple[str, ...], device: str, name: str | None, model_version: str) -> None:
    """Export RUN to RUN/artifact: calibrated, and proven to score as the trained model does."""
    from medad_serve.evaluation import export_run
    from medad_serve.training.run import open_run

    opened = open_run(run)
    artifact = export_run(opened, formats, name=name, version=model_version, device=device, say=say, progress=decoding)
    out.print(str(artifact), markup=False)
