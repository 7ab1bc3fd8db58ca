"""What a bad file costs the good ones that share its batch."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from medad_serve.loadbench.closed_loop import Sent, Target

BAD = Sent(b"no image at all")


@dataclass(frozen=True)
class Beside:
    """Of one way to answer."""

    way: str
    good: int
    """Good files sent at the same moment as a bad one."""
    lost: int
    """How many of them were not answered."""
    refused: int
    """How many of the bad ones were refused with a 4xx."""


def measure_beside(way: str, target: Target, good: Sent, *, clients: int = 16, rounds: int = 5) -> Beside:
    """Have all clients send at once, one of them a bad file, several times over."""
    found: list[tuple[bool, int]] = []
    ready = threading.Barrier(clients)

    def send(sent: Sent) -> tuple[bool, int]:
        connection = target.connect()
        ready.wait()
        status = target.send(connection, sent).status
        connection.close()
        return sent is BAD, status

    with ThreadPoolExecutor(clients) as pool:
        for number in range(rounds):
            bad = number % clients  # first, later or last in the queue
            found += pool.map(send, [BAD if index == bad else good for index in range(clients)])
    return Beside(
        way=way,
        good=sum(not is_bad for is_bad, _ in found),
        lost=sum(not is_bad and status != 200 for is_bad, status in found),
        refused=sum(is_bad and 400 <= status < 500 for is_bad, status in found),
    )
