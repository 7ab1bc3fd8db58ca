"""The load generator against a stand-in that answers by a script."""

from __future__ import annotations

import time

import numpy as np
import pytest
from faulty_server import BUSY, DROP, Fault, faulty_server

from medad_serve.errors import MedadError
from medad_serve.loadbench import Sent, Target, put_load
from medad_serve.loadbench.closed_loop import NO_ANSWER
from medad_serve.server import Ports


def test_every_request_is_counted_once() -> None:
    with faulty_server() as server:
        load = put_load(Target(server.url, "m"), [Sent(b"a"), Sent(b"b")], clients=4, seconds=0.5)
        assert load.requests == len(server.bodies) > 8
        assert load.throughput == pytest.approx(load.requests / load.seconds)
        counts = [server.bodies.count(body) for body in (b"a", b"b")]
        assert abs(counts[0] - counts[1]) <= 1
    assert load.errors == {}


def test_errors_are_counted_by_status_and_stop_nobody() -> None:
    with faulty_server(BUSY, DROP, Fault(status=422), BUSY) as server:
        load = put_load(Target(server.url, "m"), [Sent(b"x")], clients=2, seconds=0.5)
        assert load.errors == {"503: busy": 2, "422: busy": 1, NO_ANSWER: 1}
        assert load.requests == len(server.bodies) + 4


def test_percentiles_are_those_of_the_waits() -> None:
    """One client waits for 20 answers in turn, 5 to 100 ms long: half of the waits lie below 52.5 ms."""
    delays = np.linspace(0.005, 0.1, 20)
    answers = [Fault(status=200, delay_s=float(delay)) for delay in delays]
    with faulty_server(*answers) as server:
        load = put_load(Target(server.url, "m"), [Sent(b"x")], clients=1, seconds=float(delays[:-1].sum()))
    assert load.p50 == pytest.approx(np.percentile(delays, 50) * 1e3, abs=25)  # what the way there takes comes on top
    assert 85 < load.p95 <= load.p99


def test_clients_send_at_the_same_time() -> None:
    """Sixteen answers of three seconds each, in turn, would take 48."""
    with faulty_server(*[Fault(status=200, delay_s=3)] * 40) as server:
        start = time.monotonic()
        load = put_load(Target(server.url, "m"), [Sent(b"x")], clients=16, seconds=2.5)
        assert load.requests == 16
        assert 3 <= load.seconds <= time.monotonic() - start < 30


def test_a_refusal_is_told_in_the_servers_words() -> None:
    refusal = Fault(status=422, body={"error": {"code": 422, "message": "another modality"}})
    with faulty_server(refusal) as server, pytest.raises(MedadError, match="422: another modality"):
        Target(server.url, "m").check(Sent(b"x"))
    with pytest.raises(MedadError, match="no server answers"):
        Target(f"http://127.0.0.1:{Ports.free().inference}", "m").check(Sent(b"x"))
    with pytest.raises(MedadError, match="is no address"):
        Target("localhost:8080", "m").check(Sent(b"x"))


def test_stages_that_the_server_tells_are_averaged() -> None:
    told = [Fault(status=200, headers={"Server-Timing": f"infer;dur={ms}, handle;dur={2 * ms}"}) for ms in (10, 20)]
    with faulty_server(*told, *[Fault(status=200)] * 2, BUSY) as server:
        load = put_load(Target(f"{server.url}/predict", timed=True), [Sent(b"x")], clients=1, seconds=0.3)
    answered = load.requests - 1
    assert load.errors == {"503: busy": 1}
    assert load.stages == pytest.approx({"infer": 30 / answered, "handle": 60 / answered})
