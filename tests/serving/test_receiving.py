"""Messages of TorchServe's protocol, read through a buffer."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from ts.protocol import otf_message_handler as protocol

from medad_serve.serving.receiving import READER, receive_buffered


def sized(content: bytes) -> bytes:
    return struct.pack("!i", len(content)) + content


def message(*bodies: bytes) -> bytes:
    end = struct.pack("!i", -1)
    parts = [b"I"]
    for number, body in enumerate(bodies):
        parts += [sized(f"id-{number}".encode()), sized(b"Content-Type"), sized(b"application/dicom"), end]
        parts += [sized(b"body"), sized(b"application/dicom"), sized(body), end]
    return b"".join([*parts, end])


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[socket.socket, socket.socket]]:
    monkeypatch.setattr(protocol, READER, getattr(protocol, READER))  # put back afterwards
    receive_buffered(protocol)
    with_worker, with_server = socket.socketpair()
    with_worker.settimeout(30)
    yield with_worker, with_server
    with_worker.close()
    with_server.close()


def test_messages_arrive_whole_one_after_another(pair: tuple[socket.socket, socket.socket]) -> None:
    bodies = [bytes(range(256)) * 8000, b"", b"x", bytes(70_000)]
    sender = threading.Thread(target=pair[1].sendall, args=(message(*bodies) + message(b"second"),), daemon=True)
    sender.start()
    command, first = protocol.retrieve_msg(pair[0])
    assert command == b"I"
    assert [request["parameters"][0]["value"] for request in first] == bodies
    assert first[3]["requestId"] == b"id-3"
    assert first[0]["headers"] == [{"name": b"Content-Type", "value": b"application/dicom"}]
    assert protocol.retrieve_msg(pair[0])[1][0]["parameters"][0]["value"] == b"second"
    sender.join(10)


def test_the_worker_ends_where_the_server_is_gone(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[1].sendall(message(b"whole")[:-20])
    pair[1].close()
    with pytest.raises(SystemExit):
        protocol.retrieve_msg(pair[0])


def test_a_torchserve_that_reads_otherwise_is_left_alone() -> None:
    other = SimpleNamespace(read=len)
    receive_buffered(other)
    receive_buffered(None)
    assert vars(other) == {"read": len}
