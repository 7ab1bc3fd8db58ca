"""LitServe over an artifact, started and ended."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from medad_serve.errors import MedadError
from medad_serve.loadbench.closed_loop import Target
from medad_serve.server import Ports

MODULE = f"{__package__}.litserve_server"
START_S = 180
RAISES = "X-Raise"
"""Header of requests to be refused by an exception, where they are, and not by an answer."""


@dataclass(frozen=True)
class LitServed:
    """A running LitServe."""

    url: str
    process: psutil.Process

    def target(self, *, raises: bool = False) -> Target:
        """Return how to reach it; ``raises`` has it refuse as LitServe's documentation says."""
        return Target(f"{self.url}/predict", timed=True, headers=((RAISES, "1"),) * raises)


def check_litserve() -> None:
    """Raise MedadError where LitServe is not installed."""
    if importlib.util.find_spec("litserve") is None:
        raise MedadError("litserve is not installed", "Run: pip install 'medad-serve[litserve]'")


@contextmanager
def litserving(artifact: Path, *, workers: int, batch_size: int, max_batch_delay_ms: int) -> Iterator[LitServed]:
    """Serve an artifact by LitServe until the end."""
    check_litserve()
    port = Ports.free().inference
    with tempfile.TemporaryFile() as log:
        given = [artifact.resolve(), port, workers, batch_size, max_batch_delay_ms]
        with subprocess.Popen(
            [sys.executable, "-m", MODULE, *map(str, given)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        ) as started:
            process = psutil.Process(started.pid)
            try:
                url = f"http://127.0.0.1:{port}"
                _wait_until_ready(url, started)
                yield LitServed(url, process)
            finally:
                _end(process)


def _wait_until_ready(url: str, started: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and started.poll() is None:
        with suppress(httpx.HTTPError):
            if httpx.get(f"{url}/health", timeout=5, trust_env=False).status_code == 200:
                return
        time.sleep(0.2)
    raise MedadError("LitServe does not start", f"Try: python -m {MODULE} ARTIFACT 8000 1 8 1")


def _end(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        family = [process, *process.children(recursive=True)]
        process.terminate()
        for member in psutil.wait_procs(family, timeout=5)[1]:
            with suppress(psutil.NoSuchProcess):
                member.kill()
