"""What is told of the machine and of a process's memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from medad_serve.bench.machine import this_machine
from medad_serve.bench.memory import gpu_used_mib, peak_resident_mib


def test_the_machine_is_told_with_the_versions_that_decide_speed() -> None:
    machine = this_machine()
    assert machine.cores >= 1
    assert machine.memory_gib > 0.5
    assert machine.versions["torch"]
    assert machine.kind.startswith(f"{machine.cpu}, {machine.cores} cores")


def test_the_peak_is_of_the_largest_moment_and_of_this_program_alone() -> None:
    held = np.ones(2**26)  # 512 MiB that a process started from here must not count as its own
    code = (
        "import numpy as np; from medad_serve.bench.memory import peak_resident_mib as p; a = p(); "
        "x = np.ones(2**24); b = p(); del x; print(a, b, p())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, most, after = map(float, done.stdout.split())
    assert peak_resident_mib() > held.nbytes / 2**20
    assert before < 200
    assert 120 < most - before < 160
    assert after > most - 1  # what is freed stays counted; the kernel counts in batches


def test_the_memory_of_a_gpu_is_asked_of_its_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = tmp_path / "nvidia-smi"
    driver.write_text('#!/bin/sh\ncase "$*" in *--id=1*) echo 1234;; *) echo 7;; esac\n')
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert (gpu_used_mib("cuda"), gpu_used_mib("cuda:1")) == (7, 1234)
