"""``ablate``."""

from __future__ import annotations

from pathlib import Path

import click
from rich.markup import escape

from medad_serve.cli.console import decoding, out, say, table
from medad_serve.errors import MedadError


@click.command()
@click.argument("model")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--data", multiple=True, help="Layout and folder; repeat it to see what carries over between domains.")
@click.option("--config", help="A recipe that comes with the package, or a YAML file: what every variant starts from.")
@click.option("--groups", help="A YAML file of groups and variants [default: the one that comes for MODEL].")
@click.option("--only", multiple=True, metavar="GROUP", help="Train the variants of this group alone; repeatable.")
@click.option("--runs", type=click.Path(path_type=Path), default=Path("runs"), show_default=True)
@click.option("--name", help="Name of the ablation and its folder [default: EXPERIMENT-ablation].")
def ablate(
    model: str,
    overrides: tuple[str, ...],
    data: tuple[str, ...],
    config: str | None,
    groups: str | None,
    only: tuple[str, ...],
    runs: Path,
    name: str | None,
) -> None:
    """Train named variants of MODEL and compare them: one table, one report.

    Each variant is a run in RUNS/NAME, those that are alike share one. Called again, it goes on where it was
    stopped or killed, and trains anew what failed.
    """
    from medad_serve.ablation import Ablation, make_plan
    from medad_serve.ablation.table import listing, write_ablation, write_table

    plan = make_plan(model, data, groups=groups, config=config, overrides=overrides, only=only)
    for note in plan.notes:
        say(note)
    made = Ablation(plan, runs, name)
    rows = made.run(say, decoding, after=lambda found: write_table(plan, found, made.folder))
    report = write_ablation(plan, rows, made.folder)
    for group, title in plan.titles.items():
        found = listing([row for row in rows if row.variant.group == group], title, whole=False)
        shown = table(found.title, *found.head)
        for line in found.rows:
            shown.add_row(*map(escape, line))
        out.print(shown)
        out.print()
    out.print(str(report), markup=False)
    failed = [row for row in rows if row.error]
    if failed:
        raise MedadError(
            f"{len(failed)} of {len(plan.variants)} variants failed", "Mend their reasons and call it again"
        )
