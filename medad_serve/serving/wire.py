"""What passes between a worker and its decoder process: sources one way, pixels or a refusal the other.

Bulk data travels in anonymous shared memory: nothing lies on a disk, and nothing is left when either side dies.
Up to ``SCRATCH_BYTES`` it is copied through a region that both keep mapped (fresh pages for every message took
five times as long); what is larger gets a region of its own, handed over without a copy. A decoder that a hostile
file has taken over can send anything and go on writing: what comes by the scratch region is copied before it is
looked at, other regions must be sealed, and neither can be made smaller under its reader.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import socket
import struct
import time
from collections.abc import Sequence
from pathlib import Path

from medad_serve.errors import InputError
from medad_serve.io import Limits, Pixels
from medad_serve.serving.replies import decode_reply, encode_reply

Undecoded = bytes | Path | tuple[bytes, ...]
SCRATCH_BYTES = 16 * 2**20
_HEAD = struct.Struct("<QI?")
_LENGTH = struct.Struct("<Q")
_SOURCE = struct.Struct("<Bd")
_MOST_BODY, _MOST_VIEWS = 16 * 2**20, 2**16
"""Of facts and their notes; of the files of one series."""
_BYTES, _PATH, _PARTS = range(3)
_SIZE_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_SEALS = _SIZE_SEALS | fcntl.F_SEAL_WRITE


def open_scratch() -> int:
    """Return the descriptor of a new scratch region, whose size nobody can change."""
    scratch = _open_region("scratch")
    os.ftruncate(scratch, SCRATCH_BYTES)
    fcntl.fcntl(scratch, fcntl.F_ADD_SEALS, _SIZE_SEALS | fcntl.F_SEAL_SEAL)
    return scratch


class Channel:
    """One side of a connected pair: a stream socket and the shared scratch region."""

    def __init__(self, connection: socket.socket, scratch: int) -> None:
        self.connection = connection
        self._scratch = memoryview(mmap.mmap(scratch, SCRATCH_BYTES))

    def send(self, body: bytes, views: Sequence[memoryview]) -> None:
        """Send a short body and bulk data; raises OSError where the other side is gone."""
        total = sum(view.nbytes for view in views)
        head = _HEAD.pack(len(body), len(views), total > SCRATCH_BYTES)
        message = head + b"".join(_LENGTH.pack(view.nbytes) for view in views) + body
        if total > SCRATCH_BYTES:
            self._send_region(message, views)
            return
        at = 0
        for view in views:
            self._scratch[at : at + view.nbytes] = view
            at += view.nbytes
        self.connection.sendall(message)

    def receive(self, deadline: float | None = None) -> tuple[bytes, list[memoryview], bool]:
        """Receive what the other side sent, until ``time.monotonic()`` is ``deadline``: body, bulk data, and whether
        that is the receiver's own; otherwise it is overwritten by the next message.

        Raises TimeoutError at the deadline, EOFError or OSError where the other side is gone, ValueError where
        what it says makes no sense.
        """
        head, regions = self._head(deadline)
        try:
            length, count, is_region = _HEAD.unpack(head)
            if length > _MOST_BODY or count > _MOST_VIEWS:
                raise ValueError("the message is longer than any")
            sizes = [_LENGTH.unpack(self._exactly(_LENGTH.size, deadline))[0] for _ in range(count)]
            body = self._exactly(length, deadline)
            if not is_region:
                if sum(sizes) > SCRATCH_BYTES:
                    raise ValueError("more than the scratch region can hold")
                return body, _cut(self._scratch, sizes), False
            if len(regions) != 1 or not _is_sealed(regions[0]):
                raise ValueError("the region can still be changed")
            if os.fstat(regions[0]).st_size != sum(sizes):
                raise ValueError("the region has another size than its parts")
            return body, _cut(_mapped(regions[0], sum(sizes)), sizes), True
        finally:
            for region in regions:
                os.close(region)

    def _send_region(self, message: bytes, views: Sequence[memoryview]) -> None:
        region = _open_region("pixels")
        try:
            for view in views:
                done = 0
                while done < view.nbytes:
                    done += os.write(region, view[done:])  # at most 2 GiB at once
            fcntl.fcntl(region, fcntl.F_ADD_SEALS, _SEALS)
            socket.send_fds(self.connection, [message], [region])
        finally:
            os.close(region)

    def _head(self, deadline: float | None) -> tuple[bytes, list[int]]:
        self._wait_at_most(deadline)
        head, regions, _, _ = socket.recv_fds(self.connection, _HEAD.size, 1)
        if not head:
            raise EOFError("the other side is gone")
        try:
            return head + self._exactly(_HEAD.size - len(head), deadline), regions
        except BaseException:
            for region in regions:
                os.close(region)
            raise

    def _exactly(self, size: int, deadline: float | None) -> bytes:
        found = bytearray()
        while len(found) < size:
            self._wait_at_most(deadline)
            part = self.connection.recv(min(size - len(found), 2**20))
            if not part:
                raise EOFError("the other side is gone")
            found += part
        return bytes(found)

    def _wait_at_most(self, deadline: float | None) -> None:
        if deadline is not None:
            self.connection.settimeout(max(deadline - time.monotonic(), 1e-3))


def _open_region(name: str) -> int:
    return os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def _is_sealed(region: int) -> bool:
    try:
        return fcntl.fcntl(region, fcntl.F_GET_SEALS) & _SEALS == _SEALS
    except OSError:  # it is no such region at all
        return False


def _mapped(region: int, size: int) -> memoryview:
    try:
        # private: what is written into the pixels stays in this process
        return memoryview(mmap.mmap(region, size, access=mmap.ACCESS_COPY))
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise MemoryError from None
        raise


def _cut(memory: memoryview, sizes: Sequence[int]) -> list[memoryview]:
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    return [memory[start : start + size] for start, size in zip(starts, sizes, strict=True)]


def send_source(channel: Channel, source: Undecoded, deadline_s: float) -> None:
    """Send what is to be decoded and how many seconds that may take."""
    if isinstance(source, Path):
        kind, parts = _PATH, [os.fsencode(source)]
    else:
        kind, parts = (_PARTS, list(source)) if isinstance(source, tuple) else (_BYTES, [source])
    channel.send(_SOURCE.pack(kind, deadline_s), [memoryview(part) for part in parts])


def receive_source(channel: Channel) -> tuple[Undecoded, float]:
    """Wait for the next source; raises EOFError once the worker is gone."""
    body, views, _ = channel.receive()
    kind, deadline_s = _SOURCE.unpack(body)
    parts = [bytes(view) for view in views]
    if kind == _PATH:
        return Path(os.fsdecode(parts[0])), deadline_s
    return (tuple(parts) if kind == _PARTS else parts[0]), deadline_s


def send_reply(channel: Channel, reply: Pixels | InputError) -> None:
    """Send what was decoded, or why it was not."""
    channel.send(*encode_reply(reply))


def receive_reply(channel: Channel, deadline: float, limits: Limits) -> Pixels | InputError:
    """Receive what :func:`send_reply` sent; raises as :meth:`Channel.receive` does."""
    body, views, is_own = channel.receive(deadline)
    return decode_reply(body, views if is_own else [memoryview(bytearray(view)) for view in views], limits)
