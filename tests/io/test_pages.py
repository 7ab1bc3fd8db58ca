from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from medad_serve.loadbench.phantom import slice_bytes

PROGRAM = """
import resource, sys
from pathlib import Path
from medad_serve.io import decode
from medad_serve.prep import prepare
from medad_serve.spec import PrepSpec, Window

data, prep = Path(sys.argv[1]).read_bytes(), PrepSpec(window=Window(center=40, width=80))
for _ in range(5):
    prepare(decode(data), prep)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    prepare(decode(data), prep)
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators keep memory by rules of their own")
def test_the_next_image_finds_the_pages_of_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "slice.dcm"
    path.write_bytes(slice_bytes())
    done = subprocess.run([sys.executable, "-c", PROGRAM, path], capture_output=True, text=True, check=True)
    a_megabyte = 2**20 / 4096  # of float32 values, which a slice of 512x512 takes beside all else
    assert float(done.stdout) < a_megabyte / 10
