"""Which connections wait for an answer, by what the kernel knows of them."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import psutil
import pytest

from medad_serve.server.drain import ANSWER_BYTES, SETTLE_S, Exchange, drain, exchanges

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's sock_diag is Linux's own")


@pytest.mark.parametrize(
    ("exchange", "waits"),
    [
        (Exchange(sent=9.0, received=9.0, bytes_sent=0, bytes_received=0), False),  # connected, nothing asked
        (Exchange(sent=9.0, received=1.0, bytes_sent=0, bytes_received=10), True),  # asked
        (Exchange(sent=9.0, received=9.0, bytes_sent=1, bytes_received=10), True),  # within one tick of connecting
        (Exchange(sent=0.5, received=1.0, bytes_sent=10, bytes_received=10), False),  # answered
        (Exchange(sent=1.0, received=0.5, bytes_sent=10, bytes_received=20), True),  # asked again
        (Exchange(sent=0.1, received=0.1, bytes_sent=10, bytes_received=20), True),  # either: too early to tell
        (Exchange(sent=SETTLE_S + 1, received=SETTLE_S + 1, bytes_sent=10, bytes_received=20), False),
    ],
)
def test_who_waits(exchange: Exchange, waits: bool) -> None:
    assert exchange.waits(working=False) is waits


def test_what_may_be_either_waits_while_anything_is_computed() -> None:
    assert Exchange(sent=99.0, received=99.0, bytes_sent=10, bytes_received=20).waits(working=True)


@pytest.fixture
def pairs() -> Iterator[tuple[int, list[tuple[socket.socket, socket.socket]]]]:
    """A port and three connections to it, each as (client, server)."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        made = [(socket.create_connection(("127.0.0.1", port)), listening.accept()[0]) for _ in range(3)]
        yield port, made
        for client, server in made:
            client.close()
            server.close()


def test_the_kernel_tells_asked_from_answered(
    pairs: tuple[int, list[tuple[socket.socket, socket.socket]]],
) -> None:
    port, (idle, asked, answered) = pairs
    time.sleep(0.1)
    for client, server in (asked, answered):
        client.sendall(b"request")
        server.recv(100)
    time.sleep(0.1)
    answered[1].sendall(b"answer")
    time.sleep(0.05)
    ends = sorted(exchange.waits(working=False) for _, exchange in exchanges(port))
    assert ends == [False, False, True]
    assert not list(exchanges(1))
    assert idle


def test_a_drain_ends_with_the_last_answer_and_no_later_than_told(
    pairs: tuple[int, list[tuple[socket.socket, socket.socket]]],
) -> None:
    port, (_, (client, server), _) = pairs
    process = psutil.Process()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:  # a worker that waits
        begun = time.monotonic()
        drain(process, port, 60)
        assert time.monotonic() - begun < 30
        time.sleep(0.05)
        client.sendall(b"request")
        time.sleep(0.05)
        begun = time.monotonic()
        drain(process, port, 0.5)
        assert 0.5 <= time.monotonic() - begun < 30  # nobody answers
        answer = threading.Timer(0.5, server.sendall, [b"answer"])
        begun = time.monotonic()
        answer.start()
        drain(process, port, 60)
        assert 0.5 <= time.monotonic() - begun < 30
        answer.join()
        child.communicate(b"\n")


def test_a_steady_stream_of_new_requests_does_not_hold_a_drain(
    pairs: tuple[int, list[tuple[socket.socket, socket.socket]]],
) -> None:
    """One client waits; of the others one asks again with each answer, and one waits since the drain began."""
    port, (first, stream, late) = pairs
    stop = threading.Event()

    def ask_on() -> None:
        while not stop.is_set():
            stream[0].sendall(b"request")
            stream[1].recv(100)
            time.sleep(0.02)
            stream[1].sendall(bytes(ANSWER_BYTES))
            stream[0].recv(100)
            late[0].sendall(b"a body without end")

    time.sleep(0.05)
    first[0].sendall(b"request")
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as worker:  # works all the time
        asking, answer = threading.Thread(target=ask_on), threading.Timer(1, first[1].sendall, [bytes(ANSWER_BYTES)])
        begun = time.monotonic()
        draining = threading.Thread(target=drain, args=(psutil.Process(), port, 60))
        draining.start()
        time.sleep(1)
        asking.start()
        answer.start()
        draining.join(45)
        took = time.monotonic() - begun
        stop.set()
        asking.join()
        worker.kill()
    assert not draining.is_alive()
    assert 1 < took < 30
