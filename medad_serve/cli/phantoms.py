"""``phantoms``: synthetic data to try everything on without a data set of one's own."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

import click
from rich.markup import escape

from medad_serve.cli.console import out as console
from medad_serve.data.phantoms import PHANTOMS


@click.command("phantoms")
@click.argument("kind", type=click.Choice(sorted(PHANTOMS)))
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--healthy", default=300, show_default=True, type=click.IntRange(0), help="Healthy patients.")
@click.option("--abnormal", default=80, show_default=True, type=click.IntRange(0), help="Abnormal patients.")
@click.option("--slices", default=2, show_default=True, type=click.IntRange(1), help="Slices of each patient.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="The same seed, the same bytes.")
def command(kind: str, out: Path, healthy: int, abnormal: int, slices: int, seed: int) -> None:
    """Write phantoms of KIND into the new or empty folder OUT.

    They lie there as a real data set would, with known truth beside them.
    """
    started = perf_counter()
    PHANTOMS[kind].write(out, healthy=healthy, abnormal=abnormal, slices=slices, seed=seed)
    console.print(
        f"[bold]{escape(str(out))}[/bold]: {healthy} healthy and {abnormal} abnormal {kind} phantoms,"
        f" {slices} slice(s) each, in {perf_counter() - started:.0f} s"
    )
