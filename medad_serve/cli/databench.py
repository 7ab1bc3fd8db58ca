"""``bench --io``, ``--epoch`` and ``--step``: what data and training cost, printed and written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from medad_serve.bench.codecs import bench_codecs
from medad_serve.bench.io import SECONDS, bench_dicom, bench_files, bench_given
from medad_serve.bench.machine import this_machine
from medad_serve.bench.measurements import record, write_tables
from medad_serve.bench.step import bench_steps
from medad_serve.bench.tables import Table
from medad_serve.bench.training import bench_training
from medad_serve.bench.writing import refuse_other
from medad_serve.cli.console import out, table
from medad_serve.errors import MedadError
from medad_serve.models import Family, families, family

TRAINING_SECONDS = 3.0


def bench_data(
    files: Sequence[Path],
    *,
    measure_io: bool,
    epoch: bool,
    step: bool,
    models: Sequence[str],
    batch: int,
    device: str,
    seconds: float | None,
    to: Path | None,
    as_json: bool,
) -> None:
    """Measure what is asked for, print it, and write it into the folder ``to``."""
    if to is not None:
        refuse_other(to)
    chosen = [family(name) for name in models]
    made: list[Table] = []
    if measure_io:
        made += _io_tables(files, (chosen or [family("ae")])[0], seconds or SECONDS)
    if epoch:
        every = chosen or list(families().values())
        made.append(bench_training(every, seconds=seconds or TRAINING_SECONDS, device=device))
    if step:
        made.append(bench_steps(chosen or [family("ae")], batch=batch, device=device))
    if to is not None:
        write_tables(made, to)
    if as_json:
        out.print(json.dumps(record(made, this_machine()), indent=1), markup=False)
        return
    out.print(this_machine().kind, markup=False)
    for each in made:
        rows = table(each.title, *each.columns)
        for row in each.shown():
            rows.add_row(*row)
        out.print(rows)


def _io_tables(files: Sequence[Path], chosen: Family, seconds: float) -> Iterator[Table]:
    for file in files:
        if file.is_dir():
            raise MedadError(f"{file} is a folder", "Name files")
    if files:
        yield bench_given([file.read_bytes() for file in files], chosen, seconds=seconds)
        return
    yield bench_dicom(seconds=seconds)
    yield bench_files(seconds=seconds)
    yield bench_codecs(seconds=seconds)
