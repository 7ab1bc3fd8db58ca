"""``phantoms``: synthetic data to try everything on without a data set of one's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import click
from rich.markup import escape

from medad_serve.cli.console import out as console
from medad_serve.data.phantoms import PHANTOMS, Phantom


def _default(count: Callable[[Phantom], int]) -> str:
    return "  [default: " + ", ".join(f"{kind} {count(PHANTOMS[kind])}" for kind in sorted(PHANTOMS)) + "]"


@click.command("phantoms")
@click.argument("kind", type=click.Choice(sorted(PHANTOMS)))
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--healthy", type=click.IntRange(0), help="Healthy patients." + _default(lambda p: p.healthy))
@click.option("--abnormal", type=click.IntRange(0), help="Abnormal patients." + _default(lambda p: p.abnormal))
@click.option(
    "--slices", type=click.IntRange(1), help="Slices or volumes of each patient." + _default(lambda p: p.slices)
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="The same seed, the same bytes.")
def command(kind: str, out: Path, healthy: int | None, abnormal: int | None, slices: int | None, seed: int) -> None:
    """Write phantoms of KIND into the new or empty folder OUT.

    They lie there as a real data set would, with known truth beside them.
    """
    started = perf_counter()
    phantom = PHANTOMS[kind]
    healthy = phantom.healthy if healthy is None else healthy
    abnormal = phantom.abnormal if abnormal is None else abnormal
    slices = phantom.slices if slices is None else slices
    phantom.write(out, healthy=healthy, abnormal=abnormal, slices=slices, seed=seed)
    console.print(
        f"[bold]{escape(str(out))}[/bold]: {healthy} healthy and {abnormal} abnormal {kind} phantoms,"
        f" {slices} slice(s) each, in {perf_counter() - started:.0f} s"
    )
