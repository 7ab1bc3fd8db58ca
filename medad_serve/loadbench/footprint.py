"""Memory and processor time of a server on this machine, over all of its processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

import psutil

from medad_serve.server.process import FRONTEND

LOCAL = ("127.0.0.1", "localhost", "::1")
MIB = 2**20


@dataclass(frozen=True)
class Footprint:
    """Resident memory, MiB, and processor time, seconds since their start, of a server's processes."""

    frontend_mib: float
    """Of TorchServe's Java process."""
    workers_mib: float
    """Of its workers and what they started."""
    cpu_s: float
    """User and system time of all, those that have ended included."""

    @classmethod
    def of(cls, frontend: psutil.Process) -> Footprint:
        """Measure now."""
        workers = list(_below(frontend))
        family = [frontend, *workers]
        return cls(_resident(frontend), sum(map(_resident, workers)), sum(map(_cpu, family)))


def find_frontend(url: str) -> psutil.Process | None:
    """Return the Java process that listens at ``url``, None where it is not on this machine or not ours to see."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    if parts.hostname not in LOCAL:
        return None
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if FRONTEND in process.cmdline() and any(
                c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in process.net_connections("tcp")
            ):
                return process
    return None


def _below(frontend: psutil.Process) -> Iterator[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        yield from frontend.children(recursive=True)


def _resident(process: psutil.Process) -> float:
    with suppress(psutil.Error):
        return float(process.memory_info().rss) / MIB
    return 0.0


def _cpu(process: psutil.Process) -> float:
    """Return the time of a process and of its children that have ended; living ones count for themselves."""
    with suppress(psutil.Error):
        times = process.cpu_times()
        return float(sum(getattr(times, name, 0) for name in ("user", "system", "children_user", "children_system")))
    return 0.0
