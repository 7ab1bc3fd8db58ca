"""Faults on a real server under load: nothing is lost that a client may send again, and nothing is answered wrong."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from faults import START_S, bad_clients, full_disk, in_foreground, kill_worker, restart, small_disk, terminate_java
from load import PATIENT, Tally, load

from medad_serve.client import Client, Retries
from medad_serve.errors import MedadError
from medad_serve.export.archive import archive
from medad_serve.server import Ports, Server

pytestmark = [pytest.mark.server, pytest.mark.slow]
NO_RETRY = Retries(tries=1)


@pytest.fixture(scope="module")
def store(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A store on a small disk of its own, where one may be mounted."""
    with small_disk(tmp_path_factory.mktemp("disk")) as disk:
        path = (disk or tmp_path_factory.mktemp("plain")) / "store"
        archive(artifact, path, name="m")
        yield path


@pytest.fixture(scope="module")
def server(store: Path) -> Iterator[Server]:
    made = Server(store, Ports.free())
    made.start(["m"], timeout=START_S)
    yield made
    if made.process():
        made.stop(drain=0)


@pytest.fixture(scope="module")
def files(dicom_files: list[Path]) -> list[Path]:
    return dicom_files[:6]


def nothing_lost(tally: Tally) -> None:
    assert (tally.lost, tally.wrong) == (0, 0), tally
    assert tally.sent == tally.answered >= 4  # one of each client, however busy the machine


def test_a_worker_killed_under_load_costs_no_answer(server: Server, files: list[Path]) -> None:
    tally = load(server, "m", files, lambda: kill_worker(server))
    nothing_lost(tally)
    assert tally.retried


def test_slow_and_dropping_clients_cost_the_others_nothing(server: Server, files: list[Path]) -> None:
    def during() -> None:
        with bad_clients(server, "m", files[0].read_bytes()):
            time.sleep(2)

    tally = load(server, "m", files, during, retries=NO_RETRY)
    nothing_lost(tally)
    assert tally.retried == 0


def test_a_full_disk_costs_logs_and_no_answer(server: Server, store: Path, files: list[Path], tmp_path: Path) -> None:
    if not store.parent.is_mount():
        pytest.skip("no small disk may be mounted here")
    overlays = [sys.executable, "-m", "medad_serve.cli.main", "predict", str(files[0]), "--model", "m"]
    overlays += ["--url", server.url("inference"), "--key-file", str(server.key_file)]
    ends: list[subprocess.CompletedProcess[str]] = []

    def during() -> None:
        with full_disk(store.parent):
            time.sleep(3)
            command = [*overlays, "--heatmap", str(store.parent)]
            ends.append(subprocess.run(command, capture_output=True, text=True))

    before = (server.logs / "access_log.log").stat().st_size
    tally = load(server, "m", files, during, retries=NO_RETRY)
    nothing_lost(tally)
    assert (server.logs / "access_log.log").stat().st_size > before  # it writes again once there is room
    assert ends[0].returncode == 1
    assert "No space left" in ends[0].stderr
    assert "Traceback" not in ends[0].stderr


def test_a_server_that_cannot_write_says_so_and_leaves_nothing(store: Path) -> None:
    if not store.parent.is_mount():
        pytest.skip("no small disk may be mounted here")
    second = Server(store, Ports.free())
    with full_disk(store.parent), pytest.raises((MedadError, OSError)):
        second.start(["m"], timeout=60)
    assert second.process() is None


def test_a_server_stopped_and_started_under_load_costs_no_answer(server: Server, files: list[Path]) -> None:
    tally = load(server, "m", files, lambda: restart(server, ["m"]))
    nothing_lost(tally)
    assert tally.retried


def test_requests_that_come_while_a_server_stops_are_answered_rightly_or_not_at_all(
    store: Path, files: list[Path]
) -> None:
    """And hold the stop up no longer than those that were there before."""
    server = Server(store, Ports.free())
    server.start(["m"], timeout=START_S)
    took: list[float] = []

    def during() -> None:
        begun = time.monotonic()
        server.stop(drain=60)
        took.append(time.monotonic() - begun)

    tally = load(server, "m", files, during, clients=8, seconds=1, retries=NO_RETRY)
    assert tally.answered
    assert tally.wrong == 0
    assert tally.lost
    endings = ("the server closed the connection", "no server answers", "holds no inference key")
    assert all(any(ending in fault for ending in endings) for fault in tally.faults), tally.faults
    assert took[0] < 30


def test_a_frontend_terminated_under_load_costs_no_answer(server: Server, files: list[Path]) -> None:
    """TorchServe itself cuts off what it is answering; the clients ask again."""
    tally = load(server, "m", files, lambda: terminate_java(server, ["m"]))
    nothing_lost(tally)
    assert tally.retried


def test_one_of_two_servers_ends_and_the_other_answers_on(server: Server, store: Path, files: list[Path]) -> None:
    second = Server(store, Ports.free())
    second.start(["m"], timeout=START_S)
    try:
        with ThreadPoolExecutor(1) as pool:
            leaving = threading.Event()
            theirs = pool.submit(load, second, "m", files, leaving.wait, retries=PATIENT, seconds=0.5)
            nothing_lost(load(server, "m", files, leaving.set, retries=NO_RETRY))
            nothing_lost(theirs.result())
        nothing_lost(load(server, "m", files, second.stop, retries=NO_RETRY))
    finally:
        if second.process():
            second.stop(drain=0)


def test_a_termination_waits_for_what_was_asked_and_not_for_idle_connections(
    artifact: Path, tmp_path: Path, files: list[Path]
) -> None:
    """Requests wait two seconds for a batch; connections that clients keep open wait for nobody."""
    archive(artifact, tmp_path, name="late", batch_size=32, max_batch_delay_ms=2000)
    server = Server(tmp_path, Ports.free())
    with in_foreground(server, ["late"]) as process:
        clients = [Client(server.url("inference"), key_file=server.key_file, retries=NO_RETRY) for _ in range(4)]
        for client in clients[:2]:
            assert "score" in client.predict(files[0], "late")  # and stays connected
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(client.predict, files[1], "late") for client in clients[2:]]
            time.sleep(0.5)
            begun = time.monotonic()
            process.send_signal(signal.SIGTERM)
            process.wait(60)
            took = time.monotonic() - begun
        answers = [future.result() for future in asked]
        for client in clients:
            client.__exit__()
    assert server.process() is None
    assert all("score" in answer for answer in answers)
    assert took < 9  # the drain alone may last ten seconds
