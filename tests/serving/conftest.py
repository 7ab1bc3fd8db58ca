"""A real TorchServe with one worker, as tests of requests and answers ask it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from medad_serve.export.archive import archive
from medad_serve.server import Ports, Server


@pytest.fixture(scope="module")
def head_client(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client with a token, of a server of the model ``head``."""
    store = tmp_path_factory.mktemp("store")
    archive(artifact, store, name="head", max_batch_delay_ms=1)
    server = Server(store, Ports.free())
    server.start()
    try:
        key = json.loads(server.key_file.read_text())["inference"]["key"]
        address, token = server.url("inference"), {"Authorization": f"Bearer {key}"}
        with httpx.Client(base_url=address, headers=token, trust_env=False, timeout=60) as client:
            yield client
    finally:
        server.stop(drain=0)
