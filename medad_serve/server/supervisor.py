"""The service manager that started us, told how we are: sd_notify(3), which is a datagram to a socket it names."""

from __future__ import annotations

import os
import socket
from contextlib import suppress

NOTIFY_SOCKET = "NOTIFY_SOCKET"
TIMEOUT_S = 1
"""A manager that reads nothing must not hold up the watch."""


def tell(state: str) -> None:
    """Send ``READY=1``, ``WATCHDOG=1`` or ``STOPPING=1``; nothing happens where nobody listens."""
    address = os.environ.get(NOTIFY_SOCKET, "")
    if not address.startswith(("/", "@")):
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ours:
        ours.settimeout(TIMEOUT_S)
        ours.sendto(state.encode(), address.replace("@", "\0", 1) if address[0] == "@" else address)
