"""TorchServe's messages, received with fewer calls and copies than its worker makes.

The worker asks the socket for each integer of a message by itself, some thirty of them in a request, and puts bodies
together from copies of what came at once: of a slice of 0.5 MB that costs 0.15 ms against 0.11, of a series of 15 MB
9 ms against 3.
"""

from __future__ import annotations

import io
import logging
import socket
import sys
from typing import Any
from weakref import WeakKeyDictionary

logger = logging.getLogger(__name__)
PROTOCOL, READER = "ts.protocol.otf_message_handler", "_retrieve_buffer"
"""The worker's module, and its function through which alone it reads."""
AHEAD = 64 * 2**10
"""Bytes that are read ahead; what is longer goes into place without a stop."""


def receive_buffered(protocol: Any | None) -> None:
    """Have TorchServe's module read through a buffer; without it, or where it reads otherwise, nothing is changed."""
    if not hasattr(protocol, READER):
        return
    readers: WeakKeyDictionary[socket.socket, io.BufferedReader] = WeakKeyDictionary()

    def received(connection: socket.socket, length: int) -> bytearray:
        reader = readers.get(connection)
        if reader is None:
            reader = readers[connection] = io.BufferedReader(connection.makefile("rb", buffering=0), AHEAD)
        return receive(reader, length)

    setattr(protocol, READER, received)


def receive(reader: io.BufferedReader, length: int) -> bytearray:
    """Return the next ``length`` bytes; ends the process, as TorchServe's own does, where the other side is gone."""
    data = bytearray(length)
    with memoryview(data) as view:
        done = 0
        while done < length:
            count = reader.readinto(view[done:])
            if not count:
                logger.info("Frontend disconnected.")
                sys.exit(0)
            done += count
    return data
