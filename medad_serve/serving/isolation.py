"""Decoding bounded in time and memory: codecs run in a process that may hang or die without the worker.

What needs no codec (uncompressed DICOM, or a ZIP of it) is read in the worker, where it costs nothing extra;
everything else goes to one long-lived decoder process, which is replaced when it is lost.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from medad_serve.deadline import NEVER, Deadline, Postponed
from medad_serve.errors import InputError, place_of
from medad_serve.io import DEFAULT_LIMITS, Limits, Pixels
from medad_serve.io.guarded import decoded
from medad_serve.serving.plain import is_plain, plain_members, plain_parts
from medad_serve.serving.resources import memory_bytes
from medad_serve.serving.wire import Channel, Undecoded, open_scratch, receive_reply, send_source

logger = logging.getLogger(__name__)
MEMORY_BYTES = 4 * 2**30
"""What the largest accepted series takes while its slices are put together, and some."""
STARTUP_S = 30.0
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # glibc would give memory back after each file, and take it again page by page for the next
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(64 * 2**20),
}
_KILLED_FROM_OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM)


Loss = Literal["hung", "died", "nonsense"]


class IsolatedDecoder:
    """Decodes the sources of a batch one after another, never longer than ``budget_s`` for all of them together.

    Each has an equal share of the budget, and what the ones before it left over: a file that hangs costs its
    neighbours nothing of theirs. ``memory`` bounds the decoder process, in bytes. A process that hangs is ended:
    its file is refused (413) where it had the whole budget, and :class:`Postponed` where its neighbours had some
    of it, or the batch's time ended. One that dies is replaced and the file tried once more, then refused: 400, or
    413 where the system ended it, as it does when memory runs out.
    """

    def __init__(
        self,
        *,
        budget_s: float,
        memory: int = MEMORY_BYTES,
        limits: Limits = DEFAULT_LIMITS,
        module: str = f"{__package__}.decoder_process",
    ) -> None:
        self.budget_s = budget_s
        self.memory = memory
        self.limits = limits
        self.module = module
        self.losses: Counter[str] = Counter()
        """How many decoder processes were lost, by how."""
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._ready = False
        self._waited_s = 0.0
        self._start()

    def __call__(self, sources: Sequence[Undecoded], deadline: Deadline = NEVER) -> Iterator[Pixels | InputError]:
        """Yield pixels or the error of each source, in order.

        Neither what the caller takes in between is counted, nor the start of a process.
        """
        left = self.budget_s
        for index in range(len(sources)):  # what is decoded is held by the caller, or by nobody
            start, waited = time.monotonic(), self._waited_s
            answer = self._decode(sources[index], max(left, 0.0) / (len(sources) - index), deadline)
            left -= time.monotonic() - start - (self._waited_s - waited)
            yield answer

    def close(self) -> None:
        """End the decoder process."""
        with self._lock:
            self._end()

    @property
    def pid(self) -> int | None:
        """Of the decoder process, None once closed."""
        return self._process.pid if self._process else None

    def _decode(self, source: Undecoded, allowed_s: float, deadline: Deadline) -> Pixels | InputError:
        if deadline.left() <= 0:
            return Postponed()
        try:
            here = _without_codec(source, self.limits)
            return self._decode_there(source, allowed_s, deadline) if here is None else decoded(here, self.limits)
        except MemoryError:
            return InputError(507, "there is no memory left to decode the input", "Send it again later")
        except Exception as error:  # a fault of ours must not cost the neighbours their answers
            fault = f"internal fault while decoding ({type(error).__name__} at {place_of(error)})"
            return InputError(500, fault, "Report this file's format")

    def _decode_there(self, source: Undecoded, allowed_s: float, deadline: Deadline) -> Pixels | InputError:
        with self._lock:
            until = time.monotonic() + allowed_s
            for _ in range(2):
                try:
                    until += self._wait_until_ready(deadline)  # a process that starts costs no file its time
                    return self._ask(source, min(until, deadline.end))
                except TimeoutError:
                    self._lost("hung")
                    return self._too_slow(allowed_s - max(until - deadline.end, 0.0))
                except (OSError, EOFError, ValueError):
                    was_ready = self._ready
                    status = self._lost("died")
                except BaseException:  # the reply may still be on its way, and must not become that of the next file
                    self._replace()
                    raise
            if not was_ready:
                return InputError(503, "no decoder process can be started", "Send it again later")
            if status in _KILLED_FROM_OUTSIDE:
                return InputError(413, "the input needs more memory than there is", "Send fewer slices")
            return InputError(400, "the decoder broke down over the input", "The file is damaged: export it again")

    def _too_slow(self, given_s: float) -> InputError:
        if given_s < self.budget_s:
            return Postponed(given_s=given_s)
        fault = f"the input takes more than {given_s:.0f} s to decode"
        return InputError(413, fault, "Send fewer slices, or uncompressed ones")

    def _ask(self, source: Undecoded, deadline: float) -> Pixels | InputError:
        assert self._channel is not None
        self._channel.connection.settimeout(max(deadline - time.monotonic(), 1e-3))
        send_source(self._channel, source, max(deadline - time.monotonic(), 1e-3))
        return receive_reply(self._channel, deadline, self.limits)

    def _start(self) -> None:
        here, there = socket.socketpair()
        scratch = open_scratch()
        try:
            given = [there.fileno(), scratch, os.getpid(), self.memory, self.limits.model_dump_json()]
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", self.module, *map(str, given)],
                env={**os.environ, **_ENVIRONMENT},
                pass_fds=[there.fileno(), scratch],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # codecs write what they like
                stderr=subprocess.DEVNULL,
            )
            self._channel, self._ready = Channel(here, scratch), False
        except OSError:  # no more processes or memory
            here.close()
            raise
        finally:
            there.close()
            os.close(scratch)

    def _wait_until_ready(self, deadline: Deadline) -> float:
        """Return the seconds that it took the process to be ready; raises EOFError where it never is."""
        start = time.monotonic()
        if self._process is None:
            self._start()
        assert self._channel is not None
        if not self._ready:
            self._channel.connection.settimeout(max(min(STARTUP_S, deadline.left()), 1e-3))
            try:
                self._ready = self._channel.connection.recv(1) == b"R"
            except OSError:
                self._ready = False
            if not self._ready:
                raise EOFError("the process has ended while starting")
        waited = time.monotonic() - start
        self._waited_s += waited
        return waited

    def _lost(self, how: Loss) -> int | None:
        """Count and log a lost process, and start the next; return the status of one that died by itself."""
        status = None
        if self._process is not None and how == "died":
            try:
                status = self._process.wait(1)  # its end of the socket closes just before it is gone
            except subprocess.TimeoutExpired:
                how = "nonsense"
        self.losses[how] += 1
        logger.warning("a decoder process was lost and replaced: %s, status %s", how, status)
        self._replace()
        return status

    def _replace(self) -> None:
        self._end()
        with suppress(OSError):  # the next file tries again
            self._start()

    def _end(self) -> None:
        process, self._process, self._ready = self._process, None, False
        if self._channel is not None:
            self._channel.connection.close()
            self._channel = None
        if process is not None:
            process.kill()
            process.wait()


def open_decoder(*, response_timeout_s: float, workers: int, limits: Limits = DEFAULT_LIMITS) -> IsolatedDecoder | None:
    """Return the decoder of one of ``workers`` workers whose batches must be answered within ``response_timeout_s``.

    Decoding may take half of that, and its process an equal share of half the memory. None where the system has
    no anonymous shared memory (other than Linux): sources are then decoded in the worker, bound by size alone.
    """
    if not _has_shared_memory():
        logger.warning("this system cannot isolate decoders: a codec that hangs or dies costs its batch")
        return None
    memory = min(MEMORY_BYTES, memory_bytes() // (2 * workers))
    return IsolatedDecoder(budget_s=response_timeout_s / 2, memory=memory, limits=limits)


def _has_shared_memory() -> bool:
    try:
        os.close(os.memfd_create("probe"))
    except (AttributeError, OSError):  # another system, or a sandbox that forbids it
        return False
    return True


def _without_codec(source: Undecoded, limits: Limits) -> Undecoded | None:
    """Return the source as it can be decoded here, None where it cannot."""
    if isinstance(source, Path):
        return None
    if isinstance(source, tuple):
        return source if plain_parts(source) else None
    return source if is_plain(source) else plain_members(source, limits) or None
