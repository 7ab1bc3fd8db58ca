"""Wait for the requests that a server is answering: TorchServe has no drain of its own.

A client keeps its connection open between requests, so that an open one tells nothing. Whether it waits for an answer
is known to the kernel, which notes when data last came in and last went out; ``ss -ti`` reads the same.
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
_DUMP = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, _DONE = 4, 20, 3
_ESTABLISHED, _INFO = 1, 2
_MESSAGE = 72  # struct inet_diag_msg
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
    """Return once no client of ``process`` at ``port`` waits for an answer, at most ``seconds`` later."""
    deadline = time.monotonic() + seconds
    used = _cpu_seconds(process)
    while (left := deadline - time.monotonic()) > 0:
        time.sleep(min(POLL_S, left))
        before, used = used, _cpu_seconds(process)
        if not _waiting(process, port, used - before > WORKING * POLL_S):
            return


def _waiting(process: psutil.Process, port: int, working: bool) -> int:
    try:
        return sum(each.waits(working) for each in exchanges(port))
    except (OSError, AttributeError, struct.error):  # another system, or one that hides it: each open one may wait
        try:
            return sum(c.status == "ESTABLISHED" and c.laddr.port == port for c in process.net_connections("tcp"))
        except psutil.Error:
            return 0


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


def exchanges(port: int) -> Iterator[Exchange]:
    """Yield every established connection to a local TCP port, by sock_diag(7); raises OSError where there is none."""
    for family in (socket.AF_INET, socket.AF_INET6):
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as kernel:
            wanted = struct.pack("=BBBxI", family, socket.IPPROTO_TCP, 1 << (_INFO - 1), 1 << _ESTABLISHED)
            request = wanted + struct.pack(">H", port) + bytes(46)
            kernel.sendto(struct.pack("=IHHII", 16 + len(request), _SOCK_DIAG_BY_FAMILY, _DUMP, 0, 0) + request, (0, 0))
            yield from _answers(kernel, port)


def _answers(kernel: socket.socket, port: int) -> Iterator[Exchange]:
    while True:
        data = kernel.recv(2**20)
        while data:
            length, kind = struct.unpack_from("=IH", data)
            if kind != _SOCK_DIAG_BY_FAMILY:
                if kind == _DONE:
                    return
                raise OSError("the kernel lists no connections")
            if struct.unpack_from(">H", data, 16 + 4)[0] == port:
                yield from _exchange(data[16 + _MESSAGE : length])
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
