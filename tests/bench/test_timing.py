"""What is said of many calls, and that tasks take turns."""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pytest

from medad_serve.bench.timing import LEAST_TURNS, Turns, in_turns


def test_percentiles_are_those_of_numpy_over_every_call() -> None:
    rng = np.random.default_rng(0)
    calls = rng.gamma(2, 3, 300)
    turns = Turns(tuple(tuple(part) for part in np.split(calls, [50, 90, 200])))
    assert turns.calls == 300
    assert turns.median == pytest.approx(np.median(calls))
    assert turns.percentile(95) == pytest.approx(np.percentile(calls, 95))
    assert turns.percentile(99) == pytest.approx(np.percentile(calls, 99))
    assert turns.calls_per_second() == pytest.approx(1e3 / calls.mean())


@pytest.mark.parametrize(("calls", "told"), [(19, False), (20, True)])
def test_a_percentile_is_told_from_one_call_beyond_it(calls: int, told: bool) -> None:
    assert (Turns(((1.0,) * calls,)).percentile(95) is not None) == told


def test_a_ratio_pairs_turns_so_that_a_machine_slow_for_a_while_changes_nothing() -> None:
    disturbance = [1.0, 1.0, 9.0, 1.0, 5.0]
    slow = Turns(tuple((3.0 * d, 3.0 * d) for d in disturbance))
    fast = Turns(tuple((1.5 * d,) for d in disturbance))
    assert slow.ratio(fast) == pytest.approx(2)
    assert fast.ratio(slow) == pytest.approx(0.5)


def test_tasks_run_in_turn_and_none_is_left_out() -> None:
    order: list[str] = []

    def task(name: str, seconds: float) -> None:
        order.append(name)
        time.sleep(seconds)

    found = in_turns({"short": lambda: task("short", 0.004), "long": lambda: task("long", 0.03)}, 0.05)
    assert {name: len(turns.turns) for name, turns in found.items()} == dict.fromkeys(found, len(found["long"].turns))
    assert len(found["long"].turns) >= LEAST_TURNS
    assert found["long"].median >= 30
    changes = sum(a != b for a, b in pairwise(order))
    assert changes == 2 * (1 + len(found["long"].turns)) - 1


def test_a_task_has_as_many_turns_as_are_asked_for_however_slow_it_is() -> None:
    assert len(in_turns({"slow": lambda: time.sleep(0.03)}, 0, least=9)["slow"].turns) == 9


def test_processor_time_does_not_see_a_task_wait() -> None:
    def waits() -> None:
        time.sleep(0.03)
        until = time.process_time() + 0.005  # a turn lasts 20 ms of processor time, which waiting takes none of
        while time.process_time() < until:
            pass

    found = in_turns({"waits": waits}, 0.01)["waits"].median, in_turns({"waits": waits}, 0.01, time.process_time)
    assert found[0] > 30
    assert 4 < found[1]["waits"].median < found[0]
