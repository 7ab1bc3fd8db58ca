"""What is measured of a real server, briefly."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from medad_serve.cli.bench import bench
from medad_serve.cli.items import Item
from medad_serve.cli.loadbench import _print_overhead, _sent
from medad_serve.loadbench import Footprint, Sent, find_frontend, measure_overhead, measure_series, serving
from medad_serve.loadbench.overhead import MODEL, NOOP, Overhead, Serving


@pytest.fixture(scope="module")
def served(artifact: Path) -> Iterator[Serving]:
    with serving(artifact, batch_size=4) as made:
        yield made


@pytest.mark.server
def test_the_no_op_handler_is_served_as_the_model_is(served: Serving) -> None:
    configs = []
    for name in (MODEL, NOOP):
        described = served.server._manage(f"/models/{name}", "management").json()[0]
        configs.append({key: described[key] for key in ("minWorkers", "maxWorkers", "batchSize", "maxBatchDelay")})
    assert configs[0] == configs[1]
    assert configs[0]["batchSize"] == 4


@pytest.mark.server
def test_a_handler_costs_more_than_none_and_the_parts_are_added_up(served: Serving, dicom_files: list[Path]) -> None:
    bodies = [Sent(file.read_bytes()) for file in dicom_files[:4]]
    cost = measure_overhead(served, bodies, clients=4, seconds=1, rounds=1)
    assert 0 < cost.noop_ms < cost.handler_ms
    assert min(cost.decode_ms, cost.infer_ms) > 0
    assert cost.requests > 4


@pytest.mark.server
def test_a_series_is_one_request(served: Serving, dicom_files: list[Path]) -> None:
    files = tuple(dicom_files[:2])
    [packed] = _sent([Item(files[0].parent, files, is_series=True)])
    speed = measure_series(served, packed, [file.read_bytes() for file in files], rounds=2)
    assert speed.slices == 2
    assert 0 < speed.http < speed.in_process * 2
    assert speed.in_process_cpu_ms > 0


@pytest.mark.server
def test_load_on_a_running_server_tells_its_memory(served: Serving, dicom_files: list[Path]) -> None:
    url = served.server.url("inference")
    asked = [*map(str, dicom_files[:2]), "--http", url, "--model", MODEL, "--key-file", str(served.server.key_file)]
    done = CliRunner().invoke(bench, [*asked, "--clients", "1,3", "--seconds", "0.5", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [load["clients"] for load in found["load"]] == [1, 3]
    assert all(load["requests"] > 0 and load["errors"] == {} for load in found["load"])
    resident = sum(p.memory_info().rss for p in served.frontend.children(recursive=True)) / 2**20
    assert found["memory"]["after"]["workers_mib"] == pytest.approx(resident, rel=0.2)
    table = CliRunner().invoke(bench, [*asked, "--clients", "1", "--seconds", "0.2"])
    assert "resident memory" in table.output


@pytest.mark.server
def test_the_server_behind_an_address_is_found(served: Serving) -> None:
    assert find_frontend(served.server.url("inference")) == served.frontend
    assert find_frontend(served.server.url("metrics")) == served.frontend
    assert find_frontend("http://127.0.0.1:1") is None
    assert find_frontend("https://example.org") is None


def test_processor_time_counts_the_living_and_the_dead() -> None:
    """A process that burns 0.3 s in a child that ends, 0.3 s in one that stays and as much itself."""
    burn = "import time\nwhile time.process_time() < 0.3: pass\n"
    code = (
        "import subprocess, sys\n"
        f"subprocess.run([sys.executable, '-c', {burn!r}])\n"
        f"stays = subprocess.Popen([sys.executable, '-c', {burn + 'time.sleep(60)'!r}])\n"
        f"{burn}print('done', flush=True)\nsys.stdin.read()\nstays.kill()\nstays.wait()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as burning:
        assert burning.stdout is not None
        burning.stdout.readline()
        deadline = time.monotonic() + 20
        while (found := Footprint.of(psutil.Process(burning.pid))).cpu_s < 0.84 and time.monotonic() < deadline:
            time.sleep(0.1)  # the one that stays may still be at it
        burning.communicate()
    assert 0.84 <= found.cpu_s < 1.6  # three processes, whose two times come in steps of 0.01 s
    assert 5 < found.workers_mib < 50
    assert 5 < found.frontend_mib < 50


def test_the_ratio_is_of_the_sum(capsys: pytest.CaptureFixture[str]) -> None:
    cost = Overhead(clients=16, requests=1, noop_ms=1, decode_ms=2, infer_ms=0.5, handler_ms=4.2)
    assert cost.parts_ms == 3.5
    assert cost.ratio == pytest.approx(1.2)
    _print_overhead({"overhead": {**vars(cost), "parts_ms": cost.parts_ms, "ratio": cost.ratio}})
    assert "4.20  (1.20 x the sum)" in capsys.readouterr().out


@pytest.mark.parametrize("clients", ["0", "1,x", "-1"])
def test_numbers_of_clients_are_checked(clients: str) -> None:
    assert CliRunner().invoke(bench, ["--http", "http://127.0.0.1:1", "--clients", clients]).exit_code == 2


def test_load_needs_a_model() -> None:
    assert CliRunner().invoke(bench, ["--http", "http://127.0.0.1:1"]).exit_code == 2
