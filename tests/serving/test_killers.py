"""Files that end the worker of a real server, among good ones that share their batches."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import deadly_handler
import pytest
from deadly_handler import DEADLY
from faults import START_S

from medad_serve.client import Client, Retries
from medad_serve.export.archive import archive
from medad_serve.export.inspection import HANDLER
from medad_serve.server import Ports, Server

pytestmark = [pytest.mark.server, pytest.mark.slow]


@pytest.fixture
def server(artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    mar = archive(artifact, tmp_path / "made", name="m", batch_size=8, max_batch_delay_ms=100)
    (tmp_path / "store").mkdir()
    with zipfile.ZipFile(mar) as source, zipfile.ZipFile(tmp_path / "store" / "m.mar", "w") as copy:
        for info in source.infolist():
            deadly = Path(deadly_handler.__file__).read_bytes()
            copy.writestr(info, deadly if info.filename == HANDLER else source.read(info))
    (tmp_path / "made" / "config.properties").rename(tmp_path / "store" / "config.properties")
    (tmp_path / "made" / "log4j2.xml").rename(tmp_path / "store" / "log4j2.xml")
    monkeypatch.setattr(Server, "_check_model", lambda *_: None)  # which refuses the handler, rightly
    made = Server(tmp_path / "store", Ports.free())
    made.start(["m"], timeout=START_S)
    yield made
    made.stop(drain=0)


def test_good_files_are_answered_whatever_they_share_a_batch_with(server: Server) -> None:
    killers = [DEADLY + b" 1", DEADLY + b" 2"]
    sent = [body for number in range(1, 7) for body in (b"x" * number, *(killers if number == 3 else ()))]
    patient = Retries(total_s=120, longest_s=2)
    with Client(server.url("inference"), key_file=server.key_file, retries=patient) as client:
        answers = list(client.predict_many(sent, "m", concurrency=8))
    for body, answer in zip(sent, answers, strict=True):
        if body in killers:
            assert answer["answered"] is False
        else:
            assert answer == {"score": len(body)}
