"""What of the machine this process may use: cores, memory; and dying with another process."""

from __future__ import annotations

import ctypes
import math
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_CGROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def cores() -> int:
    """Return how many cores this process may keep busy: by its affinity and by the quotas of its cgroups."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [there, *(math.ceil(quota) for quota in _quotas())]
    return max(1, min(quotas))


def memory_bytes() -> int:
    """Return how much memory there is for this process: of the machine, or what its cgroups leave of it."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for folder in _groups("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limits += [int(value) for value in _words(folder / name) if value.isdigit()]
    return min(limits)


def virtual_bytes() -> int:
    """Return the size of this process's address space, which RLIMIT_AS bounds."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def die_with(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends; exit at once if that has happened."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def _quotas() -> Iterator[float]:
    for folder in _groups("cpu"):
        for words in (_words(folder / "cpu.max"), _v1_quota(folder)):  # cgroup v2: quota or max, period
            with suppress(ValueError, ZeroDivisionError):
                quota, period = map(float, words)
                if quota > 0 and math.isfinite(quota):
                    yield quota / period


def _v1_quota(folder: Path) -> list[str]:
    return _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")


def _groups(controller: str) -> Iterator[Path]:
    """Yield the folders of this process's cgroup and those above, whose limits hold too, v2 and v1."""
    for line in _lines(_OWN):
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = _CGROUPS / controllers if controllers else _CGROUPS
        folder = root / path.lstrip("/")
        while folder.is_relative_to(root):
            yield folder
            folder = folder.parent


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _words(file: Path) -> list[str]:
    return " ".join(_lines(file)).split()
