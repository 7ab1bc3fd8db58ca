"""Ways to answer the same bytes, measured on real servers, briefly; and what a bad file costs its neighbours."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from medad_serve import loadbench
from medad_serve.cli.bench import bench
from medad_serve.loadbench import Sent, Target
from medad_serve.loadbench.beside import BAD, measure_beside
from medad_serve.loadbench.closed_loop import Answer
from medad_serve.loadbench.compare import LITSERVE, NOTHING, OURS, measure_neighbours, measure_ways
from medad_serve.loadbench.litserved import litserving
from medad_serve.loadbench.served import MODEL, Serving
from medad_serve.loadbench.stages import IN_PROCESS


class Strict(Target):
    """Answers nobody whose batch of four holds a bad file: a stand-in, without a network."""

    def connect(self) -> Any:
        return Closed()

    def send(self, connection: Any, sent: Sent) -> Answer:
        return Answer(400 if sent is BAD else 500 if sent.body == b"unlucky" else 200, b"", {})


class Closed:
    def close(self) -> None:
        """There is nothing to close."""


def test_good_files_that_are_not_answered_are_lost() -> None:
    lost = measure_beside("strict", Strict("http://x"), Sent(b"unlucky"), clients=4, rounds=2)
    kept = measure_beside("strict", Strict("http://x"), Sent(b"fine"), clients=4, rounds=2)
    assert (lost.good, lost.lost, lost.refused) == (6, 6, 2)
    assert (kept.good, kept.lost, kept.refused) == (6, 0, 2)


@pytest.mark.server
def test_stages_add_up_whoever_answers(served: Serving, artifact: Path, dicom_files: list[Path]) -> None:
    pytest.importorskip("litserve")
    bodies = [Sent(file.read_bytes()) for file in dicom_files[:4]]
    with litserving(artifact, workers=1, batch_size=4, max_batch_delay_ms=1) as other:
        found = measure_ways(served, bodies, clients=(1, 6), seconds=0.6, rounds=1, litserved=other)
        beside = measure_neighbours(served, bodies[0], other)
    assert [(each.clients, each.way) for each in found] == [
        (clients, way) for clients in (1, 6) for way in (IN_PROCESS, NOTHING, OURS, LITSERVE)
    ]
    for each in found:
        assert sum(each.stages.values()) == pytest.approx(each.latency_ms)
        assert min(each.stages.values()) > -0.05 * each.latency_ms  # the clocks of three processes
        assert each.cpu_ms is not None
        assert each.cpu_ms > 0
    ours = found[2].stages
    assert min(ours[stage] for stage in ("transport", "queue", "read", "decode", "prepare", "infer", "encode")) > 0
    assert all(found[1].stages[stage] == 0 for stage in ("decode", "infer"))
    assert [(each.lost, each.refused) for each in beside[:2]] == [(0, 5), (0, 5)]
    assert beside[2].refused == 5


@pytest.mark.server
def test_load_on_a_running_server_tells_its_memory_and_its_stages(
    served: Serving, dicom_files: list[Path], tmp_path: Path
) -> None:
    url = served.server.url("inference")
    asked = [*map(str, dicom_files[:2]), "--http", url, "--model", MODEL, "--key-file", str(served.server.key_file)]
    made = ["--clients", "1,3", "--seconds", "0.5", "--json", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(bench, [*asked, *made])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["machine"]["cores"] > 0
    assert [load["clients"] for load in found["load"]] == [1, 3]
    assert all(load["requests"] > 0 and load["errors"] == {} for load in found["load"])
    for load, stages in zip(found["load"], found["stages"], strict=True):
        assert sum(stages["stages"].values()) == pytest.approx(load["mean"])
        assert stages["stages"]["queue"] > 0
    resident = sum(p.memory_info().rss for p in served.frontend.children(recursive=True)) / 2**20
    assert found["memory"]["after"]["workers_mib"] == pytest.approx(resident, rel=0.2)
    assert json.loads((tmp_path / "out" / "serving.json").read_text()) == found
    rows = list(csv.DictReader((tmp_path / "out" / "load.csv").open()))
    assert [float(row["p95 ms"]) for row in rows] == [load["p95"] for load in found["load"]]
    assert {"load.png", "stages.png", "stages.csv", "memory.csv", "serving.md"} < {
        p.name for p in (tmp_path / "out").iterdir()
    }


@pytest.mark.server
def test_an_artifact_is_served_in_several_ways(
    served: Serving, artifact: Path, dicom_files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def there(*_: object, **__: object) -> Iterator[Serving]:
        yield served

    monkeypatch.setattr(loadbench, "serving", there)
    asked = [*map(str, dicom_files[:2]), "--http", str(artifact), "--clients", "2", "--seconds", "0.3", "--rounds", "1"]
    done = CliRunner().invoke(bench, asked)
    assert done.exit_code == 0, done.output
    assert all(way in done.output for way in (IN_PROCESS, NOTHING, OURS))
    assert LITSERVE not in done.output


def test_litserve_that_is_not_installed_is_named(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "litserve", None)
    done = CliRunner().invoke(bench, ["--http", str(artifact), "--litserve"])
    assert "litserve is not installed" in str(done.exception)


def test_what_is_neither_address_nor_artifact_is_told() -> None:
    done = CliRunner().invoke(bench, ["--http", "127.0.0.1:8080", "--model", "m"])
    assert "neither an address nor an artifact" in str(done.exception)


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    done = CliRunner().invoke(bench, ["--http", "http://127.0.0.1:1", "--model", "m", "--out", str(tmp_path)])
    assert "holds something else" in str(done.exception)


@pytest.mark.parametrize("clients", ["0", "1,x", "-1"])
def test_numbers_of_clients_are_checked(clients: str) -> None:
    assert CliRunner().invoke(bench, ["--http", "http://127.0.0.1:1", "--clients", clients]).exit_code == 2


def test_load_needs_a_model() -> None:
    assert CliRunner().invoke(bench, ["--http", "http://127.0.0.1:1"]).exit_code == 2
