"""The largest memory that a process held."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
MIB = 2**20


def peak_resident_mib() -> float:
    """Return the largest resident memory of this process since it began.

    Linux tells it of this program alone; ``ru_maxrss`` there counts what the process held before its exec, which is
    the memory of whoever started it.
    """
    if _STATUS.exists():
        found = re.search(r"^VmHWM:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
        if found:
            return int(found[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (MIB if sys.platform == "darwin" else 1024)
