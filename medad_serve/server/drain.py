"""Wait for the requests that a server is answering: TorchServe has no drain of its own.

A client keeps its connection open between requests, so that an open one tells nothing. Whether it waits for an answer
is known to the kernel, which notes when data last came in and last went out; ``ss -ti`` reads the same.

TorchServe listens until it ends, and nothing makes it refuse a request. Those that come during the drain are answered
where there is time, and not waited for: a steady stream of them would have no end.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from typing import NamedTuple

import psutil

SETTLE_S = 2.0
"""A request and an answer within one tick of the kernel's clock: which came last shows by what follows."""
WORKING = 0.1
"""Share of a core that workers use while they answer; a waiting one uses none."""
POLL_S = 0.1
ANSWER_BYTES = 64
"""More than ``HTTP/1.1 100 Continue`` takes, under TLS too, and less than the head of any answer."""
_DUMP = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, _DONE = 4, 20, 3
_ESTABLISHED, _INFO = 1, 2
_MESSAGE, _ID = 72, slice(4, 52)  # struct inet_diag_msg, and in it inet_diag_sockid
_SENT, _RECEIVED, _BYTES_ACKED, _BYTES_RECEIVED = 44, 52, 120, 128  # offsets in struct tcp_info


class Exchange(NamedTuple):
    """What the kernel knows of one connection, seen from the server; times are seconds ago."""

    sent: float
    received: float
    bytes_sent: int
    bytes_received: int

    def waits(self, working: bool) -> bool:
        """Whether its client waits for an answer; ``working`` says whether any worker computes."""
        if not self.bytes_received:
            return False
        if self.received != self.sent or self.bytes_sent <= 1:  # the handshake counts as one
            return self.received <= self.sent
        return working or self.received < SETTLE_S


def drain(process: psutil.Process, port: int, seconds: float) -> None:
    """Return once every client of ``process`` at ``port`` that waits now is answered, at most ``seconds`` later."""
    deadline = time.monotonic() + seconds
    used = _cpu_seconds(process)
    left: dict[bytes, Exchange] | None = None
    while (remaining := deadline - time.monotonic()) > 0:
        time.sleep(min(POLL_S, remaining))
        before, used = used, _cpu_seconds(process)
        waiting = _waiting(process, port, used - before > WORKING * POLL_S)
        left = waiting if left is None else {key: then for key, then in left.items() if _still(then, waiting.get(key))}
        if not left:
            return


def _still(then: Exchange, now: Exchange | None) -> bool:
    """Whether a client waits for the answer that it waited for ``then``, and not for a later one."""
    return now is not None and now.bytes_sent - then.bytes_sent < ANSWER_BYTES


def _waiting(process: psutil.Process, port: int, working: bool) -> dict[bytes, Exchange]:
    """Return the connections whose clients wait for an answer."""
    try:
        return {key: each for key, each in exchanges(port) if each.waits(working)}
    except (OSError, AttributeError, struct.error):  # another system, or one that hides it: each open one may wait
        try:
            found = [c for c in process.net_connections("tcp") if c.status == "ESTABLISHED" and c.laddr.port == port]
        except psutil.Error:
            return {}
        return {repr(connection.raddr).encode(): Exchange(0, 0, 0, 0) for connection in found}


def _cpu_seconds(process: psutil.Process) -> float:
    """Return what the processes below ``process`` have used so far."""
    used = 0.0
    try:
        for child in process.children(recursive=True):
            times = child.cpu_times()
            used += times.user + times.system
    except psutil.Error:
        pass
    return used


def exchanges(port: int) -> Iterator[tuple[bytes, Exchange]]:
    """Yield every established connection to a local TCP port, by sock_diag(7), and what tells it from others.

    Raises OSError where the kernel does not say.
    """
    for family in (socket.AF_INET, socket.AF_INET6):
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as kernel:
            wanted = struct.pack("=BBBxI", family, socket.IPPROTO_TCP, 1 << (_INFO - 1), 1 << _ESTABLISHED)
            request = wanted + struct.pack(">H", port) + bytes(46)
            kernel.sendto(struct.pack("=IHHII", 16 + len(request), _SOCK_DIAG_BY_FAMILY, _DUMP, 0, 0) + request, (0, 0))
            yield from _answers(kernel, port)


def _answers(kernel: socket.socket, port: int) -> Iterator[tuple[bytes, Exchange]]:
    while True:
        data = kernel.recv(2**20)
        while data:
            length, kind = struct.unpack_from("=IH", data)
            if kind != _SOCK_DIAG_BY_FAMILY:
                if kind == _DONE:
                    return
                raise OSError("the kernel lists no connections")
            message, attributes = data[16 : 16 + _MESSAGE], data[16 + _MESSAGE : length]
            if struct.unpack_from(">H", message, 4)[0] == port:
                yield from ((message[_ID], exchange) for exchange in _exchange(attributes))
            data = data[(length + 3) & ~3 :]


def _exchange(attributes: bytes) -> Iterator[Exchange]:
    while len(attributes) >= 4:
        length, kind = struct.unpack_from("=HH", attributes)
        if kind == _INFO:
            info = attributes[4:length]
            sent, received = (struct.unpack_from("=I", info, at)[0] / 1000 for at in (_SENT, _RECEIVED))
            yield Exchange(
                sent, received, *(struct.unpack_from("=Q", info, at)[0] for at in (_BYTES_ACKED, _BYTES_RECEIVED))
            )
        attributes = attributes[max(4, (length + 3) & ~3) :]
