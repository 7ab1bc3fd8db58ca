"""``bench --io``, ``--epoch`` and ``--step``: what data and training cost, printed."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from medad_serve.bench.io import bench_io, slice_bytes
from medad_serve.bench.timing import Timings
from medad_serve.bench.training import bench_epoch, bench_step
from medad_serve.cli.console import out, table
from medad_serve.models import family


def bench_data(
    files: Sequence[Path],
    *,
    measure_io: bool,
    epoch: bool,
    step: bool,
    models: Sequence[str],
    batch: int,
    device: str,
    rounds: int | None,
    as_json: bool,
) -> None:
    """Measure what is asked for and print it."""
    chosen = [family(name) for name in models or ("ae",)]
    found: dict[str, Timings] = {}
    if measure_io:
        found["io"] = bench_io([f.read_bytes() for f in files] or [slice_bytes()], chosen[0], rounds or 300)
    if epoch:
        found["epoch"] = bench_epoch(chosen[0], rounds=rounds or 5)
    steps = {each.name: asdict(bench_step(each, batch=batch, device=device)) for each in chosen if step}
    if as_json:
        out.print(json.dumps({**found, **({"step": steps} if step else {})}, indent=1), markup=False)
        return
    out.print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}", markup=False)
    for name, timings in found.items():
        _print_timings(name, timings)
    if steps:
        rows = table(f"training step, batch {batch}", "model", "median ms", "peak GiB")
        for name, cost in steps.items():
            rows.add_row(name, f"{cost['milliseconds']:.0f}", f"{cost['peak_gib']:.2f}")
        out.print(rows)


def _print_timings(name: str, timings: Timings) -> None:
    floor = next(ms for task, ms in timings.items() if task.startswith("floor"))
    rows = table(name, "task", "median ms", "x floor")
    for task, ms in timings.items():
        rows.add_row(task, f"{ms:.3f}", f"{ms / floor:.2f}")
    out.print(rows)
