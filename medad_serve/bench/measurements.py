"""Tables of one run as files: JSON, CSV and Markdown, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medad_serve.bench.machine import Machine, this_machine
from medad_serve.bench.tables import Table
from medad_serve.bench.writing import PAGE, RECORD, refuse_other
from medad_serve.files import whole_directory, write_whole


def record(tables: Sequence[Table], machine: Machine) -> dict[str, Any]:
    """Return what was measured as JSON: rows by their columns, at full precision."""
    found = {table.name: [dict(zip(table.columns, row, strict=True)) for row in table.rows] for table in tables}
    return {"machine": machine.model_dump(mode="json"), **found}


def write_tables(tables: Sequence[Table], out: Path) -> None:
    """Write the folder ``out``; raises MedadError where one is there that holds anything else."""
    refuse_other(out)
    machine = this_machine()
    versions = ", ".join(f"{name} {number}" for name, number in machine.versions.items())
    parts = [f"Measured on {machine.kind} ({machine.system}; {versions}), load {machine.load:.1f}."]
    parts += [f"## {table.title}\n\n{table.markdown()}" for table in tables]
    with whole_directory(out) as folder:
        write_whole(folder / RECORD, json.dumps(record(tables, machine), indent=1) + "\n")
        write_whole(folder / PAGE, "\n\n".join(parts))
        for table in tables:
            write_whole(folder / f"{table.name}.csv", table.csv())
