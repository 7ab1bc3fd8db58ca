"""``sweep``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medad_serve.cli.console import decoding, out, say, table
from medad_serve.errors import MedadError

if TYPE_CHECKING:
    import optuna


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _show(study: optuna.Study, metric: str, title: str) -> None:
    """Print the trials, and the reasons of those that failed."""
    from medad_serve.training.sweep_report import best_trial, trial_rows

    best = best_trial(study)
    rows = trial_rows(study, metric)
    columns = [name for name in rows[0] if name not in ("run", "error")] if rows else []
    shown = table(title, *columns)
    for row in rows:
        is_best = best is not None and row["trial"] == best.number
        shown.add_row(*(_cell(row[name]) for name in columns), style="bold" if is_best else None)
    out.print(shown)
    for row in rows:
        if row["error"]:
            say(f"trial {row['trial']}: {row['error']}")


@click.command()
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--space", required=True, help="A YAML file (ours or a W&B sweep), or one that comes with the package.")
@click.option("--data", help="Layout and folder, e.g. cq500:DIR.")
@click.option("--trials", type=click.IntRange(min=1), help="Trials of the study in all [default: the grid, else 20].")
@click.option("--runs", type=click.Path(path_type=Path), default=Path("runs"), show_default=True)
@click.option("--study", help="Name of the study and its folder [default: EXPERIMENT-sweep].")
@click.option("--metric", help="What is optimised, e.g. val/auroc [default: the space's, else train.monitor].")
@click.option("--method", type=click.Choice(["grid", "random", "bayes"]), help="[default: the space's, else bayes]")
@click.option("--prune", type=click.Choice(["median", "hyperband", "none"]), help="[default: the space's, else median]")
def sweep(recipe: str, overrides: tuple[str, ...], runs: Path, study: str | None, **options: Any) -> None:
    """Search settings: train RECIPE (or a model) once a trial and compare.

    Each trial is a run in RUNS/STUDY, beside study.db, trials.csv and plots. Called again, it goes on where it
    was stopped or killed; with more --trials, it adds to those there are.
    """
    from medad_serve.training.sweep import Sweep
    from medad_serve.training.sweep_plan import make_plan
    from medad_serve.training.sweep_report import best_trial

    plan = make_plan(recipe, options.pop("space"), overrides=overrides, **options)
    made = Sweep(plan, runs, study)
    with made.opened() as opened:
        made.run(opened, say, decoding)
        _show(opened, plan.metric, f"{made.folder}: {plan.method}, {plan.metric} ({plan.mode})")
        best = best_trial(opened)
    if best is None:
        raise MedadError("no trial came to its end", "Read the reasons above, or add --trials")
    run = made.folder / best.user_attrs["run"]
    say(f"best: trial {best.number}; 'medad-serve train --resume {run}' adds what calibration needs, then export it")
    out.print(str(run), markup=False)
