"""``bench``: costs beside their floors."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

import click

from medad_serve.cli.console import out, table


@click.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--io", "measure_io", is_flag=True, help="Decode + prepare beside bare pydicom.")
@click.option("--epoch", is_flag=True, help="An epoch over the cache beside one over tensors in memory.")
@click.option("--model", default="ae", show_default=True)
@click.option("--rounds", type=click.IntRange(1), help="[default: 300 for --io, 5 for --epoch]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def bench(
    files: tuple[Path, ...], measure_io: bool, epoch: bool, model: str, rounds: int | None, as_json: bool
) -> None:
    """Time decoding, preparing and training data, in medians of interleaved runs.

    --io reads FILES; without any, one 512x512 16-bit uncompressed phantom slice.
    """
    from medad_serve.bench import Timings, bench_epoch, bench_io, slice_bytes
    from medad_serve.models import family

    if not measure_io and not epoch:
        raise click.UsageError("ask for --io, --epoch or both")
    chosen = family(model)
    found: dict[str, Timings] = {}
    if measure_io:
        found["io"] = bench_io([f.read_bytes() for f in files] or [slice_bytes()], chosen, rounds or 300)
    if epoch:
        found["epoch"] = bench_epoch(chosen, rounds=rounds or 5)
    if as_json:
        out.print(json.dumps(found, indent=1), markup=False)
        return
    out.print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}", markup=False)
    for name, timings in found.items():
        floor = next(ms for task, ms in timings.items() if task.startswith("floor"))
        rows = table(name, "task", "median ms", "x floor")
        for task, ms in timings.items():
            rows.add_row(task, f"{ms:.3f}", f"{ms / floor:.2f}")
        out.print(rows)
