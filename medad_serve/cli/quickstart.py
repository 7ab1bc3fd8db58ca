"""``quickstart``: everything once, on synthetic data."""

from __future__ import annotations

from pathlib import Path

import click

from medad_serve.cli.console import out, say, table


@click.command()
@click.option("--model", default="ae", show_default=True)
@click.option("--runs", type=click.Path(path_type=Path), default=Path("runs"), show_default=True)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
def quickstart(model: str, runs: Path, seed: int) -> None:
    """Write synthetic scans, train, calibrate, export, serve with TorchServe and ask over HTTP.

    Needs no data and no download; takes about three minutes on two cores. The report, overlays and
    summary.json lie in RUNS/quickstart.
    """
    from medad_serve.quickstart import FOLDER
    from medad_serve.quickstart import quickstart as run

    summary = run(runs, model, seed=seed, say=say)
    shown = table("quickstart", "measured on held-out patients", "value")
    for name, value in summary.items():
        shown.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
    out.print(shown)
    out.print(f"report: {runs / FOLDER / 'report.html'}", markup=False)
