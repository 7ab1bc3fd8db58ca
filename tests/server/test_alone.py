"""One command at a time starts or stops a server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

from medad_serve.errors import MedadError
from medad_serve.export.archive import archive
from medad_serve.server import Ports, Server
from medad_serve.server.process import FRONTEND
from medad_serve.server.server import LOCK


def frontends(store: Path) -> list[psutil.Process]:
    """Return every TorchServe that runs over a store."""
    running = (process for process in psutil.process_iter(["cmdline"]))
    commands = ((process, process.info["cmdline"] or []) for process in running)
    return [process for process, command in commands if FRONTEND in command and str(store) in command]


@pytest.mark.server
def test_of_two_commands_that_start_at_once_one_serves_and_the_other_says_why_not(
    artifact: Path, tmp_path: Path
) -> None:
    archive(artifact, tmp_path, name="m")
    ports = Ports.free()
    command = [sys.executable, "-m", "medad_serve.cli.main", "serve", "--store", str(tmp_path)]
    command += ["--inference-port", str(ports.inference), "--management-port", str(ports.management)]
    command += ["--metrics-port", str(ports.metrics)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)]
    told = sorted((process.communicate(timeout=300)[0], process.returncode) for process in started)
    try:
        (refused, code), (serving, fine) = told
        assert (code, fine) == (1, 0), told
        assert refused.startswith("Error: another command is starting or stopping the server at http://127.0.0.1:")
        assert len(refused.splitlines()) == 1
        assert serving.startswith("Serving m at")
        assert len(frontends(tmp_path)) == 1
        with FileLock(tmp_path / f".server-{ports.inference}" / LOCK), pytest.raises(MedadError, match="another comm"):
            Server(tmp_path, ports).stop()
        assert len(frontends(tmp_path)) == 1
    finally:
        Server(tmp_path, ports).stop(drain=0)
    assert frontends(tmp_path) == []
