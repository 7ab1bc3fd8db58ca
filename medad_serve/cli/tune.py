"""``tune``: the fastest way to serve an artifact on this machine."""

from __future__ import annotations

from pathlib import Path

import click

from medad_serve.cli.console import out, say, table
from medad_serve.cli.serving import FOLDER


@click.command()
@click.argument("artifact", type=FOLDER)
@click.option("--runtime", "variants", multiple=True, help="Try this one alone, e.g. openvino/int8; repeatable.")
@click.option("--exact", is_flag=True, help="Try float32 alone.")
@click.option("--seconds", type=click.FloatRange(0.05), default=1.0, show_default=True, help="Of each trial.")
def tune(artifact: Path, variants: tuple[str, ...], exact: bool, seconds: float) -> None:
    """Measure which of the variants exported, batch, threads and session answer most items a second.

    ARTIFACT, an exported model or the run that it lies in, keeps what was found: predict and archive then take it.
    """
    from medad_serve.artifact import load_manifest, locate
    from medad_serve.bench.tuning import tune as search
    from medad_serve.spec import FLOAT32

    found_at = locate(artifact)
    if exact:
        variants += tuple(name for name in load_manifest(found_at).calibrations if name.endswith(f"/{FLOAT32}"))
    found = search(found_at, variants=variants, seconds=seconds, say=say)
    rows = table(f"tuned on {found.machine}", "trial", "items a second")
    for name, rate in sorted(found.trials.items(), key=lambda each: -each[1]):
        rows.add_row(name, f"{rate:.1f}")
    out.print(rows)
    session = ", ".join(f"{name} {value}" for name, value in found.session.model_dump(exclude_defaults=True).items())
    out.print(f"{found.variant}, {found.workers} workers, {session or 'session as usual'}", markup=False)
