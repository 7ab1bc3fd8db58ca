"""What is measured of a real server, briefly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest

from medad_serve.cli.items import Item
from medad_serve.cli.loadbench import _sent
from medad_serve.cli.loadtables import overhead_table
from medad_serve.loadbench import Footprint, Sent, find_frontend, measure_overhead, measure_series
from medad_serve.loadbench.overhead import Overhead, mixed
from medad_serve.loadbench.served import MODEL, NOOP, Serving


@pytest.mark.server
def test_the_no_op_handler_is_served_as_the_model_is(served: Serving) -> None:
    configs = []
    key = json.loads(served.server.key_file.read_text())["management"]["key"]
    for name in (MODEL, NOOP):
        url = f"{served.server.url('management')}/models/{name}"
        described = httpx.get(url, headers={"Authorization": f"Bearer {key}"}, trust_env=False).json()[0]
        configs.append({key: described[key] for key in ("minWorkers", "maxWorkers", "batchSize", "maxBatchDelay")})
    assert configs[0] == configs[1]
    assert configs[0]["batchSize"] == 4


@pytest.mark.server
def test_handler_no_op_and_parts_are_measured_of_the_same_files(served: Serving, dicom_files: list[Path]) -> None:
    """What is told of one round lies within what the processes spent meanwhile, warming up included."""
    bodies = [Sent(file.read_bytes()) for file in dicom_files[:4]]
    before, here = Footprint.of(served.frontend).cpu_s, time.process_time()
    cost = measure_overhead(served, bodies, clients=4, seconds=1, rounds=1)
    spent_ms, here_ms = (Footprint.of(served.frontend).cpu_s - before) * 1e3, (time.process_time() - here) * 1e3
    assert cost.requests > 4
    assert 0 < cost.handler_ms * cost.requests < spent_ms
    assert 0 < cost.noop_ms < spent_ms
    assert min(cost.decode_ms, cost.infer_ms) > 0
    assert (cost.decode_ms + cost.infer_ms) * cost.requests < here_ms


@pytest.mark.server
def test_a_series_is_one_request(served: Serving, dicom_files: list[Path]) -> None:
    files = tuple(dicom_files[:2])
    [packed] = _sent([Item(files[0].parent, files, is_series=True)])
    before, start = [served.counters(model).requests for model in (MODEL, NOOP)], time.perf_counter()
    speed = measure_series(served, packed, [file.read_bytes() for file in files], rounds=5)
    elapsed = time.perf_counter() - start
    after = [served.counters(model).requests for model in (MODEL, NOOP)]
    assert [late - early for late, early in zip(after, before, strict=True)] == [7, 7]  # looked at, warm, five rounds
    assert speed.slices == 2
    ways = speed.http, speed.in_process, speed.noop
    assert 0 < 3 * sum(speed.slices / way for way in ways) < elapsed  # three of five take the median or longer
    assert 0 < speed.in_process_cpu_ms * 2 * 5 < elapsed * 1e3 * (os.cpu_count() or 1)


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


def test_the_ratio_is_of_the_sum() -> None:
    cost = Overhead(clients=16, requests=1, noop_ms=1, decode_ms=2, infer_ms=0.5, handler_ms=4.2)
    assert cost.parts_ms == 3.5
    assert cost.ratio == pytest.approx(1.2)
    rows = {row[0]: row[1:] for row in overhead_table(cost).rows}
    assert rows["handler"] == (4.2, pytest.approx(1.2))
    assert rows["sum of the parts"] == (3.5, 1)


def test_the_parts_run_in_batches_of_the_sizes_that_were_served() -> None:
    sizes = list(mixed({8: 6, 1: 2, 3: 1}))
    assert sorted(sizes) == [1, 1, 3, 8, 8, 8, 8, 8, 8]
    assert sizes[:3] != [8, 8, 8] != sizes[-3:]  # mixed, as they came
    assert list(mixed({})) == []
