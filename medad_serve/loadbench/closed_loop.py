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
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, urlsplit

import numpy as np

from medad_serve.errors import MedadError

NO_ANSWER = "no answer"
TIMEOUT_S = 300


class Sent(NamedTuple):
    """The body of a request, held in memory, and its content type."""

    body: bytes
    kind: str = "application/octet-stream"


@dataclass(frozen=True)
class Target:
    """One model of one server."""

    url: str
    model: str
    token: str | None = None
    ca: Path | None = None

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

    def send(self, connection: HTTPConnection, sent: Sent) -> tuple[int, bytes]:
        """Return status and content of one answer; raises OSError or HTTPException where there is none."""
        headers = {"Content-Type": sent.kind}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        connection.request("POST", f"/predictions/{quote(self.model, safe='')}", sent.body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()

    def check(self, sent: Sent) -> None:
        """Send one request; raises MedadError with the server's words unless it is answered 200."""
        connection = self.connect()
        try:
            status, said = self.send(connection, sent)
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
    errors = sum((errors for _, errors in parts), Counter[str]())
    latencies = np.array([ms for latencies, _ in parts for ms in latencies])
    p50, p95, p99 = np.percentile(latencies, [50, 95, 99]) if len(latencies) else [float("nan")] * 3
    return Load(
        clients=clients,
        seconds=taken,
        requests=len(latencies) + errors.total(),
        throughput=len(latencies) / taken,
        p50=float(p50),
        p95=float(p95),
        p99=float(p99),
        errors=dict(errors),
    )


def _client(target: Target, bodies: Iterator[Sent]) -> tuple[list[float], Counter[str]]:
    latencies: list[float] = []
    errors: Counter[str] = Counter()
    connection = target.connect()
    for body in bodies:
        start = time.perf_counter()
        try:
            status, said = target.send(connection, body)
        except (OSError, HTTPException):
            errors[NO_ANSWER] += 1
            connection.close()
            connection = target.connect()
            continue
        if status == 200:
            latencies.append((time.perf_counter() - start) * 1e3)
        else:
            errors[_words(status, said)] += 1
    connection.close()
    return latencies, errors


def _words(status: int, said: bytes) -> str:
    """Return a status with what the handler or TorchServe says of it."""
    words = said[:300].decode("utf-8", "replace")
    with suppress(ValueError, KeyError, TypeError, AttributeError):
        told = json.loads(said)
        words = str(told.get("error", told)["message"])
    return f"{status}: {words}"
