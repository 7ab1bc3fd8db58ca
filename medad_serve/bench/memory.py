"""The largest memory that a process held, and what is taken of a GPU's."""

from __future__ import annotations

import re
import resource
import subprocess
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


def gpu_used_mib(device: str) -> float:
    """Return what every process together has taken of the memory of a GPU, ``cuda`` or ``cuda:1``, by its driver."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    index = device.partition(":")[2] or "0"
    said = subprocess.run([*command, f"--id={index}"], capture_output=True, text=True, check=True).stdout
    return float(said.split()[0])
