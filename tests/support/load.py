"""Clients that ask a server without pause while something is done to it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from medad_serve.client import Client, Retries
from medad_serve.errors import MedadError
from medad_serve.server import Server

PATIENT = Retries(tries=200, total_s=240, longest_s=2)
"""Outlasts the start of a server on a busy machine."""


class Tally(NamedTuple):
    """What became of the requests of a load."""

    sent: int
    answered: int
    """Rightly: with the score that the file has alone."""
    wrong: int
    retried: int
    """Attempts beyond the first."""
    lost: int
    """Never answered, by whatever name."""
    slowest_s: float
    faults: tuple[str, ...]
    """Kinds of what was lost or wrong."""


def load(
    server: Server,
    model: str,
    files: Sequence[Path],
    during: Callable[[], object],
    *,
    clients: int = 4,
    seconds: float = 2,
    retries: Retries = PATIENT,
) -> Tally:
    """Ask with so many clients for ``seconds`` before ``during``, through it and after; return what became of all."""
    url = server.url("inference")
    with Client(url, key_file=server.key_file, retries=retries) as client:
        alone = {file: client.predict(file, model)["score"] for file in files}
        begun, stop, lock = 0, threading.Event(), threading.Lock()
        answers: list[tuple[Path, dict[str, Any], float]] = []

        def attempt(_: object) -> None:
            nonlocal begun
            with lock:
                begun += 1

        client._http.event_hooks["request"].append(attempt)  # every attempt, told from outside

        def ask(offset: int) -> None:
            while not stop.is_set():
                offset += 1
                file, since = files[offset % len(files)], time.monotonic()
                try:
                    answer = client.predict(file, model)
                except MedadError as error:
                    answer = {"error": {"message": str(error)}}
                with lock:
                    answers.append((file, answer, time.monotonic() - since))

        threads = [threading.Thread(target=ask, args=(offset,)) for offset in range(clients)]
        for thread in threads:
            thread.start()
        try:
            time.sleep(seconds)
            during()
            time.sleep(seconds)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    right = [file for file, answer, _ in answers if abs(answer.get("score", 1e9) - alone[file]) <= 1e-6 * alone[file]]
    lost = [answer for _, answer, _ in answers if "score" not in answer]
    return Tally(
        sent=len(answers),
        answered=len(right),
        wrong=len(answers) - len(right) - len(lost),
        retried=begun - len(answers),
        lost=len(lost),
        slowest_s=max((took for *_, took in answers), default=0.0),
        faults=tuple(sorted({answer["error"]["message"] for answer in lost})),
    )
