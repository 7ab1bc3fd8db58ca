"""The decoder process: ``python -m medad_serve.serving.decoder_process SOCKET SCRATCH PARENT MEMORY LIMITS``.

Started by :class:`medad_serve.serving.isolation.IsolatedDecoder`. It never loads torch, logs nothing, and ends
with the worker that started it, whatever ends that one.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress

from medad_serve.errors import InputError
from medad_serve.io import Limits
from medad_serve.io.guarded import decoded
from medad_serve.serving.resources import die_with, virtual_bytes
from medad_serve.serving.wire import Channel, receive_source, send_reply

GRACE_S = 2.0
"""The worker ends a decoder at its deadline; an orphan ends itself this much later."""


def main(arguments: Sequence[str]) -> None:
    """Decode what comes over the socket until it is closed.

    MEMORY bounds in bytes what decoding may take beyond what the process holds when it is ready; LIMITS are those
    of inputs, as JSON.
    """
    descriptor, scratch, parent, memory = map(int, arguments[:4])
    limits = Limits.model_validate_json(arguments[4])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server; the closed socket ends this one
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process even within a codec
    die_with(parent)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold the patient
    _warm_up()
    limit = virtual_bytes() + memory
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with socket.socket(fileno=descriptor) as connection:
        channel = Channel(connection, scratch)
        connection.sendall(b"R")
        while True:
            try:
                _answer_next(channel, limits)
            except MemoryError:  # in what leads to the decoder and back: nothing has been sent then
                send_reply(channel, InputError(413, "the input needs more memory than there is", "Send fewer frames"))
            signal.setitimer(signal.ITIMER_REAL, 0)


def _answer_next(channel: Channel, limits: Limits) -> None:
    source, deadline_s = receive_source(channel)
    signal.setitimer(signal.ITIMER_REAL, deadline_s + GRACE_S)
    reply = decoded(source, limits)
    del source
    send_reply(channel, reply)


def _warm_up() -> None:
    """Load what is loaded at first use, before memory is bounded; one thread each, the worker has the others."""
    import cv2
    import imagecodecs

    cv2.setNumThreads(1)
    for name in ("jpeg8_decode", "jpegls_decode", "jpeg2k_decode", "dicomrle_decode"):
        getattr(imagecodecs, name)


if __name__ == "__main__":
    with suppress(EOFError, OSError):
        main(sys.argv[1:])
    os._exit(0)  # without the teardown of the libraries, which nobody waits for
