"""One engine in a process of its own: how long it takes to its first answer, and the most memory that it holds.

``python -m medad_serve.bench.fresh`` reads what to open from its input as JSON and prints what it measured.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time

from medad_serve.bench.memory import gpu_used_mib, peak_resident_mib
from medad_serve.errors import MedadError
from medad_serve.spec import Frozen

TIMEOUT_S = 900


class ColdStart(Frozen):
    """Of a process that does nothing but run one engine."""

    import_s: float
    """Until Python runs and the packages are imported."""
    load_s: float
    """Until the model is ready."""
    first_s: float
    """Until the first answer, at batch 1."""
    peak_mib: float
    """Resident memory of the process, the largest batch included."""
    device_peak_mib: float | None = None
    """Memory of the GPU that it took, of a GPU that does nothing else meanwhile."""

    @property
    def total_s(self) -> float:
        """From nothing to the first answer."""
        return self.import_s + self.load_s + self.first_s


def start_fresh(engine: str, subject: str, setup: str) -> ColdStart:
    """Measure an engine in a process of its own; ``subject`` and ``setup`` as JSON.

    Raises MedadError with the last line that the process said where it fails.
    """
    try:
        # with a cache of its own: torch.compile would find what it compiled before
        with tempfile.TemporaryDirectory(prefix="medad-fresh-") as cache:
            done = subprocess.run(
                [sys.executable, "-m", "medad_serve.bench.fresh", engine, str(time.time())],
                input=f"{subject}\n{setup}\n",
                env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache},
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                check=False,
            )
    except subprocess.TimeoutExpired:
        raise MedadError(f"{engine} gave no answer within {TIMEOUT_S} s", "Measure fewer or smaller models") from None
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["no word"]
        raise MedadError(f"{engine} ended with {done.returncode} ({said[-1]})", "Leave it out with --engine")
    return ColdStart.model_validate_json(done.stdout.strip().splitlines()[-1])


def _measure(name: str, started: float) -> ColdStart:
    import numpy as np

    from medad_serve.bench.engines import Setup, Subject, engine

    subject = Subject.model_validate_json(sys.stdin.readline())
    setup = Setup.model_validate_json(sys.stdin.readline())
    chosen, batch = engine(name), np.zeros((max(setup.batches), *subject.shape), np.float32)
    used = gpu_used_mib(setup.device) if setup.device != "cpu" else None
    times = [time.time()]
    session = chosen.open(subject, setup)
    times.append(time.time())
    session.run(batch[:1], subject.names)
    times.append(time.time())
    session.run(batch, subject.names)
    return ColdStart(
        import_s=times[0] - started,
        load_s=times[1] - times[0],
        first_s=times[2] - times[1],
        peak_mib=peak_resident_mib(),
        device_peak_mib=gpu_used_mib(setup.device) - used if used is not None else None,
    )


if __name__ == "__main__":
    print(_measure(sys.argv[1], float(sys.argv[2])).model_dump_json())
