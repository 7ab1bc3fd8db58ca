"""What a user waits for who scores one file by the command line: a process from its start to its last line."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

from medad_serve.bench.tables import Table
from medad_serve.errors import MedadError
from medad_serve.evaluation.subject import run_around

ROUNDS = 3
RUNTIME = "onnx"
COMMAND = "command"
"""Name of the table."""
TIMEOUT_S = 300


def predict_seconds(artifact: Path) -> float:
    """Return the median seconds of ``medad-serve predict`` of one file of the run that an artifact lies in."""
    run = run_around(artifact)
    if run is None:
        raise MedadError(f"{artifact} lies in no run", "Name an artifact whose run has its data")
    file = run.table().samples[0].path
    return statistics.median(_seconds(artifact, file) for _ in range(ROUNDS))


def command_table(seconds: dict[str, float]) -> Table:
    """Return the seconds of each model as a table."""
    title = f"medad-serve predict of one file, {RUNTIME}, from nothing"
    return Table(COMMAND, title, ("model", "s"), tuple(sorted(seconds.items())))


def _seconds(artifact: Path, file: Path) -> float:
    command = [sys.executable, "-m", "medad_serve.cli.main", "predict", str(file), "--artifact", str(artifact)]
    start = time.perf_counter()
    done = subprocess.run(
        [*command, "--runtime", RUNTIME], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    taken = time.perf_counter() - start
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise MedadError(f"predict ended with {done.returncode} ({said})", "Try the file by itself")
    return taken
