"""One server for everything that is measured of one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from medad_serve.loadbench import serving
from medad_serve.loadbench.served import Serving


@pytest.fixture(scope="package")
def served(artifact: Path) -> Iterator[Serving]:
    with serving(artifact, batch_size=4) as made:
        yield made
