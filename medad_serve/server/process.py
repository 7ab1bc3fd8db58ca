"""The processes of a server: found again by whoever comes later, and ended without leaving any."""

from __future__ import annotations

import json
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

import psutil

FRONTEND = "org.pytorch.serve.ModelServer"
STATE = "server.json"
PID_FILE = ".model_server.pid"
PREFIX = "medad-serve-"
"""Begins the names of the temporary directories."""


def temporary_of(run_dir: Path) -> Path | None:
    """Return the temporary directory of the server in ``run_dir``, None where none was started."""
    try:
        return Path(json.loads((run_dir / STATE).read_text())["temporary"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def models_of(run_dir: Path) -> list[str]:
    """Return the models that the server in ``run_dir`` was started with."""
    try:
        return [str(name) for name in json.loads((run_dir / STATE).read_text())["models"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def remove_temporary(run_dir: Path, marks: tuple[str, ...]) -> None:
    """Remove the temporary directory that the state names, where it is one of ours: the state could name any.

    It has our prefix and owner, is no link, and holds one of ``marks`` or nothing.
    """
    found = temporary_of(run_dir)
    if found is None or not found.name.startswith(PREFIX) or found.is_symlink() or not found.is_dir():
        return
    ours = not hasattr(os, "getuid") or found.stat().st_uid == os.getuid()
    held = {path.name for path in found.iterdir()} if ours else set()
    if ours and (not held or held.intersection(marks)):
        shutil.rmtree(found, ignore_errors=True)


def process_of(run_dir: Path) -> psutil.Process | None:
    """Return the running frontend of the server in ``run_dir``."""
    temporary = temporary_of(run_dir)
    try:
        process = psutil.Process(int((temporary / PID_FILE).read_text())) if temporary else None
        return process if process and FRONTEND in process.cmdline() and _lives(process) else None
    except (OSError, ValueError, psutil.Error):
        return None


def running(store: Path) -> list[Path]:
    """Return the run directories of the servers that run over a store."""
    return [path for path in store.glob(".server-*") if process_of(path) is not None]


def end(process: psutil.Process, timeout: float) -> None:
    """Terminate a frontend and its workers; what stays past ``timeout`` seconds is killed."""
    with suppress(psutil.NoSuchProcess):
        family = [process, *process.children(recursive=True)]
        process.terminate()
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and any(_lives(member) for member in family):
            time.sleep(0.1)
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()


def _lives(process: psutil.Process) -> bool:
    """A zombie has ended, even where nobody collects it (PID 1 of a container)."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
