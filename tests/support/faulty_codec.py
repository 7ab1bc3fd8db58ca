"""A decoder process whose codec does what a source says: ``python -m faulty_codec``, as IsolatedDecoder starts it."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import time
from pathlib import Path
from typing import Any

from medad_serve.serving import decoder_process as process
from medad_serve.serving.wire import Channel

SLOW = b"slow"
"""Before four digits of seconds, and what is to be decoded after them."""
real, real_send = process.decoded, process.send_reply


def decoded(source: Any, limits: Any) -> Any:
    """Hang, die, take long or talk nonsense where the source says so; decode everything else."""
    if source == b"hang":
        time.sleep(600)
    if source == b"crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if source == b"killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if isinstance(source, bytes) and source.startswith(SLOW):
        time.sleep(float(source[len(SLOW) : len(SLOW) + 4]))
        return real(source[len(SLOW) + 4 :], limits)
    if isinstance(source, bytes) and source.startswith(b"once"):
        seen = Path(os.fsdecode(source[4:]))
        if not seen.exists():
            seen.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    if source == b"nonsense":
        os.write(int(sys.argv[1]), b"\xff" * 100)
    if source == b"pickle":
        return pickle.dumps(os.system)
    return real(source, limits)


def send_reply(channel: Channel, reply: Any) -> None:
    """Send bytes as they are, in place of any reply."""
    if isinstance(reply, bytes):
        channel.send(reply, [])
    else:
        real_send(channel, reply)


if __name__ == "__main__":
    process.decoded = decoded
    process.send_reply = send_reply
    process.main(sys.argv[1:])
