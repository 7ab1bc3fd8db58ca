"""Messages between two processes, of which one may be hostile: whole, or none."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medad_serve.serving.wire import SCRATCH_BYTES, Channel, open_scratch

LARGE = b"0123456789abcdef" * (SCRATCH_BYTES // 16) + b"!"
OPEN = Path("/proc/self/fd")
HEAD = struct.Struct("<QI?Q")
"""Of a message of one part: length of the body, parts, whether a region follows, and bytes of the part."""
HEADS = st.builds(HEAD.pack, *[st.integers(0, 2**32 - 1)] * 2, st.booleans(), st.integers(0, 2**64 - 1))


class Pair(NamedTuple):
    ours: Channel
    theirs: Channel
    scratch: int


def _pair() -> Iterator[Pair]:
    scratch = open_scratch()
    here, there = socket.socketpair()
    with here, there:
        yield Pair(Channel(here, scratch), Channel(there, scratch), scratch)
    os.close(scratch)


@pytest.fixture
def pair() -> Iterator[Pair]:
    yield from _pair()


def soon() -> float:
    return time.monotonic() + 5


def region(seals: int, size: int = len(LARGE)) -> int:
    made = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(made, size)
    fcntl.fcntl(made, fcntl.F_ADD_SEALS, seals)
    return made


@pytest.mark.parametrize("parts", [[], [b"one", b"", b"three"], [LARGE, b"more"]])
def test_a_message_arrives_whole(pair: Pair, parts: list[bytes]) -> None:
    pair.theirs.send(b"body", [memoryview(part) for part in parts])
    body, views, is_own = pair.ours.receive(soon())
    assert body == b"body"
    assert [bytes(view) for view in views] == parts
    assert is_own is (sum(map(len, parts)) > SCRATCH_BYTES)


def test_nobody_can_change_the_size_of_the_scratch_region(pair: Pair) -> None:
    for size in (0, SCRATCH_BYTES - 4096, SCRATCH_BYTES + 4096):
        with pytest.raises(PermissionError):
            os.ftruncate(pair.scratch, size)
    with pytest.raises(PermissionError):  # nor seal it against the writing of its other user
        fcntl.fcntl(pair.scratch, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


def test_what_was_received_cannot_be_changed_afterwards(pair: Pair) -> None:
    given: list[int] = []
    real = socket.send_fds

    def keeping(connection: socket.socket, messages: list[bytes], descriptors: list[int]) -> int:
        given.extend(map(os.dup, descriptors))
        return real(connection, messages, descriptors)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "send_fds", keeping)
        pair.theirs.send(b"", [memoryview(LARGE)])
    [view] = pair.ours.receive(soon())[1]
    for change in (
        lambda fd: os.pwrite(fd, b"x", 0),
        lambda fd: os.ftruncate(fd, 0),
        lambda fd: os.ftruncate(fd, 2**30),
    ):
        with pytest.raises(PermissionError):
            change(given[0])
    os.close(given[0])
    view[0] = 7  # the receiver may
    assert view[1:] == LARGE[1:]


@pytest.mark.parametrize(
    "opened",
    [
        lambda: region(0),
        lambda: region(fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW),
        lambda: region(fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW),
        lambda: region(fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK),
        lambda: region(fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW, len(LARGE) - 1),
        lambda: os.open(os.devnull, os.O_RDWR),
    ],
)
def test_a_region_that_can_be_changed_is_never_mapped(pair: Pair, opened: Callable[[], int]) -> None:
    descriptor = opened()
    before = len(list(OPEN.iterdir()))
    socket.send_fds(pair.theirs.connection, [HEAD.pack(0, 1, True, len(LARGE))], [descriptor])
    with pytest.raises(ValueError, match="region"):
        pair.ours.receive(soon())
    assert len(list(OPEN.iterdir())) == before
    os.close(descriptor)


def test_who_says_nothing_is_not_waited_for(pair: Pair) -> None:
    pair.theirs.connection.send(b"\0" * 5)
    with pytest.raises(TimeoutError):
        pair.ours.receive(time.monotonic() + 0.1)
    pair.theirs.connection.close()
    with pytest.raises(EOFError):
        pair.ours.receive(soon())


@given(st.binary(max_size=300) | HEADS)
def test_any_bytes_are_a_message_or_an_error(said: bytes) -> None:
    for pair in _pair():
        pair.theirs.connection.sendall(said)
        pair.theirs.connection.shutdown(socket.SHUT_WR)
        try:
            _, views, is_own = pair.ours.receive(soon())
        except (ValueError, EOFError):
            continue
        assert not is_own
        assert sum(view.nbytes for view in views) <= SCRATCH_BYTES
