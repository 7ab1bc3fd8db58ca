"""Whoever is alone is alone, whoever waits gets in."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from medad_serve.client.gate import Gate


def test_nobody_is_inside_with_one_who_is_alone() -> None:
    gate, lock = Gate(), threading.Lock()
    together = alone = 0
    seen: list[tuple[int, int]] = []

    def visit(number: int) -> None:
        nonlocal together, alone
        is_alone = number % 3 == 0
        with gate.alone() if is_alone else gate.together():
            with lock:
                together, alone = together + (not is_alone), alone + is_alone
                seen.append((together, alone))
            time.sleep(0.002)
            with lock:
                together, alone = together - (not is_alone), alone - is_alone

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(visit, range(120)))
    assert len(seen) == 120
    assert max(others for others, _ in seen) > 1
    assert {pair for pair in seen if pair[1]} == {(0, 1)}


def test_who_waits_to_be_alone_goes_before_those_who_come_later() -> None:
    gate, order = Gate(), []

    def enter(name: str, alone: bool) -> None:
        with gate.alone() if alone else gate.together():
            order.append(name)

    with ThreadPoolExecutor(2) as pool, gate.together():
        pool.submit(enter, "alone", True)
        while not gate._waiting:
            time.sleep(0.01)
        pool.submit(enter, "later", False)
        time.sleep(0.1)
        assert order == []
    assert order == ["alone", "later"]
