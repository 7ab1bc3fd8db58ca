"""What is measured of a real server, briefly."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import psutil
import pytest

from medad_serve.cli.items import Item
from medad_serve.cli.loadbench import _sent
from medad_serve.cli.loadtables import overhead_table
from medad_serve.errors import MedadError
from medad_serve.loadbench import Footprint, Sent, find_frontend, measure_overhead, measure_series
from medad_serve.loadbench import overhead as overhead_module
from medad_serve.loadbench import series as series_module
from medad_serve.loadbench.closed_loop import Answer
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
    assert 0 < cost.handler_ms * cost.requests < spent_ms
    assert 0 < cost.noop_ms < spent_ms
    assert min(cost.decode_ms, cost.infer_ms) > 0
    assert cost.decode_ms + cost.infer_ms < here_ms


@pytest.mark.server
def test_a_series_is_one_request(served: Serving, dicom_files: list[Path]) -> None:
    files = tuple(dicom_files[:2])
    [packed] = _sent([Item(files[0].parent, files, is_series=True)])
    before, start = [served.counters(model).requests for model in (MODEL, NOOP)], time.perf_counter()
    spent, here = Footprint.of(served.frontend).cpu_s, time.process_time()
    speed = measure_series(served, packed, [file.read_bytes() for file in files], rounds=5)
    elapsed, here_ms = time.perf_counter() - start, (time.process_time() - here) * 1e3
    spent_ms = (Footprint.of(served.frontend).cpu_s - spent) * 1e3
    after = [served.counters(model).requests for model in (MODEL, NOOP)]
    assert [late - early for late, early in zip(after, before, strict=True)] == [7, 7]  # looked at, warm, five rounds
    assert speed.slices == 2
    ways = speed.http, speed.in_process, speed.noop
    assert 0 < 3 * sum(speed.slices / way for way in ways) < elapsed  # three of five take the median or longer
    assert 0 < speed.in_process_cpu_ms * 2 * 5 < here_ms
    assert 0 <= speed.http_cpu_ms * 2 * 5 <= spent_ms


class _Clocks:
    """Of the wall and of processors, which go on only as a stub says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall = self.here = self.server = 0.0
        for module in (series_module, overhead_module):
            monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=self._wall, process_time=self._here))
            monkeypatch.setattr(module, "Footprint", SimpleNamespace(of=lambda _: Footprint(0, 0, self.server)))

    def _wall(self) -> float:
        return self.wall

    def _here(self) -> float:
        return self.here


def test_each_figure_of_a_series_is_of_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three slices over HTTP in 6 s and 1.5 s of the server, here in 2 and 0.6 s, their bytes alone in 3 s."""
    clocks = _Clocks(monkeypatch)

    class Way:
        def __init__(self, wall_s: float, cpu_s: float, status: int = 200) -> None:
            self.wall_s, self.cpu_s, self.status = wall_s, cpu_s, status

        def check(self, _: Sent) -> None:
            pass

        def connect(self) -> Any:
            return SimpleNamespace(close=lambda: None)

        def send(self, *_: object) -> Answer:
            clocks.wall += self.wall_s
            clocks.server += self.cpu_s
            return Answer(self.status, b"", {})

    def predict(_: object) -> list[Any]:
        clocks.wall += 2
        clocks.here += 0.6
        return [SimpleNamespace(slices=(1, 2, 3))]

    ways = {MODEL: Way(6, 1.5), NOOP: Way(3, 0.1)}
    server = SimpleNamespace(logs="logs")
    stub: Any = SimpleNamespace(
        server=server, frontend=None, target=ways.__getitem__, predictor=SimpleNamespace(predict=predict)
    )
    found = measure_series(stub, Sent(b"x"), [b"x"], rounds=3)
    assert asdict(found) == pytest.approx(
        {"slices": 3, "http": 0.5, "in_process": 1.5, "noop": 1, "http_cpu_ms": 500, "in_process_cpu_ms": 200}
    )
    ways[NOOP].status = 503
    with pytest.raises(MedadError, match="did not answer every request"):
        measure_series(stub, Sent(b"x"), [b"x"], rounds=3)


def test_each_figure_of_the_overhead_is_of_its_own_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three rounds, one of which was slow: 2 ms a request of the no-op handler, 9 of the handler, 3 and 1 here."""
    clocks, rounds, sizes = _Clocks(monkeypatch), iter([1, 1, 5, 5, 1, 1]), []

    def loaded(model: str, *_: object) -> Any:
        clocks.server += {NOOP: 0.02, MODEL: 0.09}[model] * next(rounds)
        return SimpleNamespace(requests=10)

    def parts(_: object, __: object, asked: list[int]) -> tuple[float, float]:
        sizes.append(asked)
        return 3.0, 1.0

    monkeypatch.setattr(overhead_module, "_parts", parts)
    told = itertools.count()
    stub: Any = SimpleNamespace(
        frontend=None,
        batch=4,
        warm_up=lambda *_: None,
        loaded=loaded,
        counters=lambda _: SimpleNamespace(batches=Counter({4: 2 * next(told)})),
    )
    found = measure_overhead(stub, [Sent(b"x")], clients=2, seconds=1, rounds=3)
    assert asdict(found) == pytest.approx(
        {"clients": 2, "requests": 30, "noop_ms": 2, "decode_ms": 3, "infer_ms": 1, "handler_ms": 9}
    )
    assert sizes[1:] == [[4, 4]] * 3, "as the handler was given them in the same round"


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
