"""Clients that each send their next request once the last is answered."""

from __future__ import annotations

import itertools
import json
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, urlsplit

import numpy as np

from medad_serve.errors import MedadError
from medad_serve.serving.timing import ASKED, TOLD, read_timing

NO_ANSWER = "no answer"
TIMEOUT_S = 300


class Sent(NamedTuple):
    """The body of a request, held in memory, and its content type."""

    body: bytes
    kind: str = "application/octet-stream"


class Answer(NamedTuple):
    """Status, content and, where it was asked for and told, milliseconds by stage of the server."""

    status: int
    content: bytes
    stages: dict[str, float]


@dataclass(frozen=True)
class Target:
    """One model of one server: ``url`` of a TorchServe, or with a path that takes requests as it is."""

    url: str
    model: str = ""
    token: str | None = None
    ca: Path | None = None
    timed: bool = False
    """Whether to ask for the times of the server's stages."""
    headers: tuple[tuple[str, str], ...] = ()
    """Sent with every request beside its content type and the token."""

    def connect(self) -> HTTPConnection:
        """Open a connection of its own. http.client, since the generator shares the cores with a local server."""
        parts = urlsplit(self.url)
        if not parts.hostname or parts.scheme not in ("http", "https"):
            raise MedadError(f"{self.url} is no address of a server", "Give one such as http://127.0.0.1:8080")
        if parts.scheme == "http":
            return HTTPConnection(parts.hostname, parts.port, timeout=TIMEOUT_S)
        context = ssl.create_default_context(cafile=str(self.ca) if self.ca else None)
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # --ca may name the certificate itself
        return HTTPSConnection(parts.hostname, parts.port, timeout=TIMEOUT_S, context=context)

    def send(self, connection: HTTPConnection, sent: Sent) -> Answer:
        """Return one answer; raises OSError or HTTPException where there is none."""
        headers = {**dict(self.headers), "Content-Type": sent.kind}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        if self.timed:
            headers[ASKED] = "1"
        path = urlsplit(self.url).path.rstrip("/") or f"/predictions/{quote(self.model, safe='')}"
        connection.request("POST", path, sent.body, headers)
        answer = connection.getresponse()
        stages = read_timing(answer.headers.get(TOLD, "")) if self.timed else {}
        return Answer(answer.status, answer.read(), stages)

    def check(self, sent: Sent) -> None:
        """Send one request; raises MedadError with the server's words unless it is answered 200."""
        connection = self.connect()
        try:
            status, said, _ = self.send(connection, sent)
        except (OSError, HTTPException) as error:
            raise MedadError(f"no server answers at {self.url} ({error})", "Start one: medad-serve serve") from None
        finally:
            connection.close()
        if status != 200:
            raise MedadError(f"the server answers {_words(status, said)}", "Check --model, --key-file and the files")


@dataclass(frozen=True)
class Load:
    """What one number of clients met. Latencies in milliseconds, of answers 200."""

    clients: int
    seconds: float
    requests: int
    throughput: float
    """Answers 200 a second."""
    p50: float
    p95: float
    p99: float
    mean: float
    stages: dict[str, float]
    """Mean milliseconds by stage, as the server told them."""
    errors: dict[str, int]
    """By status and the server's words, or ``no answer``."""


def put_load(target: Target, bodies: Sequence[Sent], clients: int, seconds: float) -> Load:
    """Let ``clients`` send ``bodies`` in turn for ``seconds``; those under way at the end are waited for.

    A connection that ends is opened again; nothing is sent again: what fails is counted.
    """
    turn = itertools.cycle(bodies)
    taking = threading.Lock()
    start = time.perf_counter()
    end = start + seconds

    def bodies_in_turn() -> Iterator[Sent]:
        while time.perf_counter() < end:
            with taking:
                body = next(turn)
            yield body

    with ThreadPoolExecutor(clients) as pool:
        parts = list(pool.map(lambda _: _client(target, bodies_in_turn()), range(clients)))
    taken = time.perf_counter() - start
    errors = sum((part.errors for part in parts), Counter[str]())
    latencies = np.array([ms for part in parts for ms in part.latencies])
    p50, p95, p99 = np.percentile(latencies, [50, 95, 99]) if len(latencies) else [float("nan")] * 3
    stages: dict[str, float] = {}
    for stage, ms in (entry for part in parts for entry in part.stages.items()):
        stages[stage] = stages.get(stage, 0.0) + ms
    return Load(
        clients=clients,
        seconds=taken,
        requests=len(latencies) + errors.total(),
        throughput=len(latencies) / taken,
        p50=float(p50),
        p95=float(p95),
        p99=float(p99),
        mean=float(latencies.mean()) if len(latencies) else float("nan"),
        stages={stage: ms / len(latencies) for stage, ms in stages.items()},
        errors=dict(errors),
    )


@dataclass
class _Met:
    """What one client met: milliseconds of each answer 200, their sums by stage, and what else was answered."""

    latencies: list[float] = field(default_factory=list)
    stages: dict[str, float] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)


def _client(target: Target, bodies: Iterator[Sent]) -> _Met:
    met = _Met()
    connection = target.connect()
    for body in bodies:
        start = time.perf_counter()
        try:
            answer = target.send(connection, body)
        except (OSError, HTTPException):
            met.errors[NO_ANSWER] += 1
            connection.close()
            connection = target.connect()
            continue
        if answer.status != 200:
            met.errors[_words(answer.status, answer.content)] += 1
            continue
        met.latencies.append((time.perf_counter() - start) * 1e3)
        for stage, ms in answer.stages.items():
            met.stages[stage] = met.stages.get(stage, 0.0) + ms
    connection.close()
    return met


def _words(status: int, said: bytes) -> str:
    """Return a status with what the handler or TorchServe says of it."""
    words = said[:300].decode("utf-8", "replace")
    with suppress(ValueError, KeyError, TypeError, AttributeError):
        told = json.loads(said)
        words = str(told.get("error", told)["message"])
    return f"{status}: {words}"
