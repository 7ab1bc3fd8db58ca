"""Faults done to a real server: each returns once it has happened, and the server serves again where it says so."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from medad_serve.errors import MedadError
from medad_serve.server import Server
from medad_serve.server.health import health_of

START_S = 240


def workers(server: Server) -> list[psutil.Process]:
    """Return the processes that predict."""
    process = server.process()
    assert process is not None
    found = []
    for child in process.children(recursive=True):
        with suppress(psutil.Error):  # one that has just ended
            if any("model_service_worker" in part for part in child.cmdline()):
                found.append(child)
    return found


def kill_worker(server: Server) -> None:
    """Kill a worker with -9; TorchServe starts another."""
    [before, *_] = workers(server)
    before.kill()
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        now = [worker for worker in workers(server) if worker.pid != before.pid]
        if now and _ready(server):
            return
        time.sleep(0.2)
    raise TimeoutError("no worker came back")


def _ready(server: Server) -> bool:
    try:
        with server.management() as management:
            return not health_of(management, server.models()).lost
    except MedadError:
        return False


def restart(server: Server, models: list[str]) -> None:
    """Stop and start again at the same ports."""
    server.stop()
    server.start(models, timeout=START_S)


def terminate_java(server: Server, models: list[str]) -> None:
    """Send SIGTERM past medad-serve, straight to TorchServe's frontend, and start again."""
    process = server.process()
    assert process is not None
    process.terminate()
    psutil.wait_procs([process], timeout=60)
    server.start(models, timeout=START_S)


@contextmanager
def in_foreground(server: Server, models: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``medad-serve serve --foreground`` over the same store and ports, as a supervisor does."""
    command = [sys.executable, "-m", "medad_serve.cli.main", "serve", "--foreground", "--store", str(server.store)]
    for kind in ("inference", "management", "metrics"):
        command += [f"--{kind}-port", str(urlsplit(server.url(kind)).port)]
    command += [part for name in models for part in ("--model", name)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + START_S
        while server.process() is None or not server.key_file.exists() or not _ready(server):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(60)


@contextmanager
def bad_clients(server: Server, model: str, body: bytes, count: int = 40) -> Iterator[None]:
    """Keep so many connections that send a byte of their body now and then, and drop as many half-way."""
    address = urlsplit(server.url("inference"))
    token = json.loads(server.key_file.read_text())["inference"]["key"]
    head = (
        f"POST /predictions/{model} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Type: application/octet-stream\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    with ExitStack() as stack:
        slow = []
        for index in range(count):
            raw = socket.create_connection((address.hostname or "", address.port or 0), timeout=10)
            slow.append(stack.enter_context(raw))
            raw.sendall(head + body[:100] if index % 2 else head[:40])
            with socket.create_connection((address.hostname or "", address.port or 0), timeout=10) as dropped:
                dropped.sendall(head + body[: len(body) // 2])
                if index % 2:  # a reset instead of an end
                    dropped.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        for raw in slow:
            raw.sendall(b"\0")
        yield


@contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """Fill the file system of ``folder``; refuses one that is larger than a test's own."""
    room = os.statvfs(folder)
    assert room.f_blocks * room.f_frsize < 2**28
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(2**16))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
        try:
            while True:
                file.write(b"\0")
        except OSError:
            pass
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def small_disk(folder: Path, megabytes: int = 32) -> Iterator[Path | None]:
    """Mount a small file system at ``folder``; yields None where this account may not."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0700", "medad-test", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True).returncode == 0
    except OSError:
        done = False
    try:
        yield folder if done else None
    finally:
        if done:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
