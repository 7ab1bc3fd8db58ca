"""Workers that fail after the start: told by ``health``, and the end of a server in the foreground."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from certificates import make_pair
from click.testing import CliRunner
from faults import workers

from medad_serve.cli.main import cli
from medad_serve.errors import MedadError
from medad_serve.export.archive import archive
from medad_serve.server import Health, Management, Ports, Server, Tls, Watch
from medad_serve.server.management import Workers
from medad_serve.server.process import temporary_of
from medad_serve.server.supervisor import NOTIFY_SOCKET, tell


class Told(Management):
    """A management API that says what it is given: ready workers, or nothing at all."""

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:1", None)
        self.ready: dict[str, int] | None = {}

    def workers(self, model: str) -> Workers:
        if self.ready is None:
            raise MedadError("no management API answers")
        return Workers(self.ready[model], 2)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr("medad_serve.server.health.time.monotonic", lambda: now[0])
    return now


def test_a_model_is_given_up_once_it_has_had_no_worker_for_so_long(clock: list[float]) -> None:
    told = Told()
    watch = Watch(told, ["a", "b"], patience_s=60)
    for passed, ready, given_up in [
        (50, {"a": 1, "b": 0}, None),
        (30, {"a": 0, "b": 1}, None),
        (20, {"a": 0, "b": 2}, None),
        (20, {"a": 0, "b": 0}, "a"),
    ]:
        clock[0] += passed
        told.ready = ready
        assert watch.given_up() == given_up


def test_a_server_that_does_not_answer_has_no_worker(clock: list[float]) -> None:
    told = Told()
    watch = Watch(told, ["a"], patience_s=60)
    told.ready = None
    for passed, given_up in [(50, None), (20, "a")]:
        clock[0] += passed
        assert watch.given_up() == given_up


def test_one_ready_worker_is_enough() -> None:
    health = Health({"a": Workers(1, 4), "b": Workers(0, 1)})
    assert health.lost == ["b"]
    assert health.to_json() == {
        "healthy": False,
        "models": {"a": {"ready": 1, "wanted": 4}, "b": {"ready": 0, "wanted": 1}},
    }


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """A service manager's socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(str(path))
        made.settimeout(60)
        yield made


def test_the_service_manager_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(tmp_path / "notify") as manager:
        monkeypatch.setenv(NOTIFY_SOCKET, str(tmp_path / "notify"))
        tell("READY=1")
        assert manager.recv(100) == b"READY=1"
    tell("READY=1")  # it has gone: nothing happens
    monkeypatch.delenv(NOTIFY_SOCKET)
    tell("READY=1")


def health(*options: object) -> tuple[int, str]:
    """Run the command in a process of its own, as a container's health check; return its status and what it says."""
    command = [sys.executable, "-m", "medad_serve.cli.main", "health", *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def test_without_a_server_it_says_so(tmp_path: Path) -> None:
    code, said = health("--store", tmp_path, "--inference-port", Ports.free().inference)
    assert code == 1
    assert said.startswith("Error: no server runs at http://127.0.0.1")
    code, said = health("--management-url", f"http://127.0.0.1:{Ports.free().inference}")
    assert code == 1
    assert said.startswith("Error: no management API answers at")
    assert len(said.splitlines()) == 1


def lose_workers(server: Server) -> None:
    """Kill the workers; those that TorchServe starts in their place find no graph any more."""
    temporary = temporary_of(server.run_dir)
    assert temporary is not None
    for graph in temporary.glob("models/*/model.onnx"):
        graph.unlink()
    for worker in workers(server):
        worker.kill()


def options_of(server: Server) -> list[str]:
    kinds = ("inference", "management", "metrics")
    return [part for kind in kinds for part in (f"--{kind}-port", server.url(kind).rpartition(":")[2])]


@contextmanager
def in_foreground(server: Server, tls: Tls, notify: Path) -> Iterator[subprocess.Popen[str]]:
    """Serve under a supervisor; yields the command once it says that it serves."""
    command = [sys.executable, "-m", "medad_serve.cli.main", "serve", "--foreground", "--give-up-after", "4"]
    command += ["--store", str(server.store), *options_of(server)]
    command += ["--tls-cert", str(tls.certificate), "--tls-key", str(tls.key)]
    environment = {**os.environ, NOTIFY_SOCKET: str(notify)}
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, env=environment, text=True, **output) as process:
        try:
            assert process.stdout is not None
            assert any(line.startswith("Logs:") for line in process.stdout), "it does not serve"
            yield process
        finally:
            process.terminate()


@pytest.mark.server
def test_a_model_that_loses_its_workers_for_good_is_named_and_ends_the_server(artifact: Path, tmp_path: Path) -> None:
    """Over TLS, by health's own process: what a container's health check and a supervisor see."""
    tls = make_pair(tmp_path / "tls")
    archive(artifact, tmp_path / "store", name="head")
    server = Server(tmp_path / "store", Ports.free(), tls)
    here = ["--store", str(server.store), *options_of(server)[:2]]
    far = ["--management-url", server.url("management"), "--key-file", server.key_file, "--ca", tls.certificate]
    with listening(tmp_path / "notify") as manager, in_foreground(server, tls, tmp_path / "notify") as process:
        assert [manager.recv(100) for _ in range(2)] == [b"READY=1", b"WATCHDOG=1"]
        assert health(*here) == (0, "head: 1 of 1 workers ready\n")
        code, said = health(*far, "--json")
        assert (code, json.loads(said)) == (0, {"healthy": True, "models": {"head": {"ready": 1, "wanted": 1}}})
        process.send_signal(signal.SIGSTOP)  # it must not end the server before that was asked
        lose_workers(server)
        deadline = time.monotonic() + 120
        while "is missing" not in (told := health(*here))[1] and time.monotonic() < deadline:
            time.sleep(0.5)  # until the next worker has said why it fails
        assert told[0] == 1
        assert told[1].startswith("Error: no worker of head is ready: ")
        process.send_signal(signal.SIGCONT)
        assert process.stdout is not None
        last = process.stdout.read()
        assert process.wait(60) == 1
    assert "Error: no worker of head has been ready for 4 s: " in last
    assert "model.onnx is missing" in last
    assert server.process() is None
    assert not server.key_file.exists()


def test_options_that_belong_together_are_asked_for_together(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["health", "--store", str(tmp_path), "--ca", str(tmp_path / "ca.pem")])
    assert done.exit_code == 2
    assert "--management-url" in done.output
