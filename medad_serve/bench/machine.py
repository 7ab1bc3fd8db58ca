"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

from medad_serve.export.artifact import package_versions
from medad_serve.serving.resources import cores, memory_bytes
from medad_serve.spec import Frozen

FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
)
"""Instructions of x86-64 and Arm that reduced precisions gain by."""
PACKAGES = ("torch", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "numpy")
_CPUINFO = Path("/proc/cpuinfo")
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


class Machine(Frozen):
    """A machine and the software on it."""

    cpu: str
    cores: int
    """That this process may use."""
    memory_gib: float
    flags: tuple[str, ...]
    governor: str
    load: float
    """Processes that ran on average in the minute before: above 0 others worked too."""
    gpus: tuple[str, ...]
    system: str
    versions: dict[str, str]

    @property
    def kind(self) -> str:
        """What must be alike for ratios to be comparable."""
        return ", ".join([f"{self.cpu}, {self.cores} cores", *self.gpus])


def this_machine() -> Machine:
    """Return the facts of this machine."""
    info = _CPUINFO.read_text() if _CPUINFO.exists() else ""
    return Machine(
        cpu=_cpu(info),
        cores=cores(),
        memory_gib=round(memory_bytes() / 2**30, 1),
        flags=tuple(flag for flag in FLAGS if re.search(rf"^(flags|Features)\b.*\b{flag}\b", info, re.MULTILINE)),
        governor=_GOVERNOR.read_text().strip() if _GOVERNOR.exists() else "unknown",
        load=round(os.getloadavg()[0], 2),
        gpus=_gpus(),
        system=f"{platform.system()} {platform.release()} ({platform.machine()})",
        versions={"python": platform.python_version(), **package_versions(PACKAGES)},
    )


def _cpu(info: str) -> str:
    named = re.search(r"^model name\s*:\s*(.+)$", info, re.MULTILINE)
    return named[1].strip() if named else platform.processor() or platform.machine()


def _gpus() -> tuple[str, ...]:
    import torch

    return tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
