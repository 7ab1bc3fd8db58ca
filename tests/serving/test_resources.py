"""Cores and memory by affinity and by the quotas of cgroups, v2 and v1."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from medad_serve.serving import resources
from medad_serve.serving.resources import cores, memory_bytes, virtual_bytes


@pytest.fixture(autouse=True)
def cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 12 cores whose cgroups lie in a folder."""
    monkeypatch.setattr(resources, "_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(resources, "_OWN", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(12)), raising=False)
    return tmp_path


def _write(root: Path, own: str, files: dict[str, str]) -> None:
    (root / "own").write_text(own)
    for name, text in files.items():
        path = root / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_without_cgroups_the_affinity_counts() -> None:
    assert cores() == 12
    assert memory_bytes() == psutil.virtual_memory().total


@pytest.mark.parametrize(
    ("quota", "expected"), [("max 100000", 12), ("250000 100000", 3), ("5000 100000", 1), ("9900000 100000", 12)]
)
def test_a_quota_of_cgroup_v2_bounds_the_cores(cgroups: Path, quota: str, expected: int) -> None:
    _write(cgroups, "0::/pods/one\n", {"pods/one/cpu.max": quota, "pods/cpu.max": "max 100000"})
    assert cores() == expected


def test_the_quota_of_a_group_above_holds_too(cgroups: Path) -> None:
    _write(cgroups, "0::/pods/one\n", {"pods/one/cpu.max": "800000 100000", "pods/cpu.max": "400000 100000"})
    assert cores() == 4


def test_quotas_of_cgroup_v1_bound_the_cores(cgroups: Path) -> None:
    files = {"cpu,cpuacct/a/cpu.cfs_quota_us": "200000", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"}
    files["cpu,cpuacct/cpu.cfs_quota_us"] = "-1"
    _write(cgroups, "4:memory:/a\n2:cpu,cpuacct:/a\n", files)
    assert cores() == 2


def test_memory_is_what_the_cgroup_leaves(cgroups: Path) -> None:
    _write(cgroups, "0::/a\n", {"a/memory.max": "2000000", "memory.max": "max"})
    assert memory_bytes() == 2_000_000
    _write(cgroups, "3:memory:/b\n", {"memory/b/memory.limit_in_bytes": "3000000"})
    assert memory_bytes() == 3_000_000


def test_the_address_space_is_measured() -> None:
    assert virtual_bytes() == pytest.approx(psutil.Process().memory_info().vms, rel=0.05)


def test_a_process_whose_parent_is_gone_ends_at_once() -> None:
    code = "from medad_serve.serving.resources import die_with; die_with(1 << 22); print('still here')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
