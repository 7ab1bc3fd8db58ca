"""The graph against the end of a batch's time, on a clock that it alone moves."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest

from medad_serve import deadline as deadline_module
from medad_serve import scoring
from medad_serve.deadline import Deadline, Postponed
from medad_serve.errors import InputError
from medad_serve.runtime import FloatArray, Outputs
from medad_serve.scoring import Found, Rows, Scorer

SHAPE = (1, 1024, 1024)
"""Of which four rows make a call; of zeros, so that no memory is touched."""


class Clock:
    """Seconds that pass when somebody lets them."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class Graph:
    """Takes ``row_s`` for a row; its scores are the means of the rows."""

    def __init__(self, clock: Clock, row_s: float) -> None:
        self.clock, self.row_s = clock, row_s
        self.calls: list[int] = []

    def run(self, batch: FloatArray, names: Sequence[str]) -> Outputs:
        self.calls.append(len(batch))
        self.clock.now += self.row_s * len(batch)
        return {"score": batch[:, 0, 0, 0]}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(deadline_module, "time", SimpleNamespace(monotonic=made))
    monkeypatch.setattr(scoring, "time", SimpleNamespace(perf_counter=made))
    return made


def rows(count: int, spent_s: float = 0.0) -> Rows:
    return Rows(np.zeros((count, *SHAPE), np.float32), heatmap=False, spent_s=spent_s)


def score(
    clock: Clock, items: list[Rows], seconds: float, *, row_s: float = 1.0, mixes: bool = False
) -> tuple[list[str], list[int]]:
    """Return ``found``, or the status of each item, and the sizes of the calls."""
    graph = Graph(clock, row_s)
    scorer = Scorer(graph, SHAPE, (0, 1), [])
    scorer._may_mix = mixes
    answers = scorer.score(items, Deadline.after(seconds), has_begun=False)
    return ["found" if isinstance(a, Found) else str(int(a.code)) for a in answers], graph.calls


@pytest.mark.parametrize("mixes", [False, True])
def test_what_ends_in_time_is_answered(clock: Clock, mixes: bool) -> None:
    assert score(clock, [rows(2), rows(3)], 6, mixes=mixes)[0] == ["found", "found"]


def test_an_item_is_not_begun_that_by_the_last_ones_would_end_too_late(clock: Clock) -> None:
    said, calls = score(clock, [rows(4), rows(4), rows(4)], 10)
    assert said == ["found", "found", "503"]
    assert calls == [4, 4]


def test_an_item_is_left_between_two_calls_once_the_next_would_end_too_late(clock: Clock) -> None:
    said, calls = score(clock, [rows(4), rows(8)], 10)
    assert said == ["found", "503"]  # alone its 8 seconds would have been there
    assert calls == [4, 4]


def test_an_item_for_which_all_of_the_time_is_too_short_is_refused(clock: Clock) -> None:
    said, calls = score(clock, [rows(12), rows(1)], 10)
    assert said == ["413", "found"]
    assert calls == [4, 4, 1]


def test_what_an_item_took_before_counts(clock: Clock) -> None:
    assert score(clock, [rows(4), rows(8, spent_s=1)], 10)[0] == ["found", "503"]
    assert score(clock, [rows(4), rows(8, spent_s=3)], 10)[0] == ["found", "413"]


def test_an_item_without_neighbours_that_is_not_done_is_too_slow(clock: Clock) -> None:
    assert score(clock, [rows(8, spent_s=np.inf)], 7)[0] == ["413"]


def test_of_items_that_share_calls_those_that_were_done_are_answered(clock: Clock) -> None:
    said, calls = score(clock, [rows(2), rows(2), rows(2)], 5, mixes=True)
    assert said == ["found", "found", "503"]
    assert calls == [4]


def test_nothing_runs_once_the_time_is_over(clock: Clock) -> None:
    graph, deadline = Graph(clock, 1.0), Deadline.after(10)
    clock.now += 10
    [answer] = Scorer(graph, SHAPE, (0, 1), []).score([rows(1, spent_s=9)], deadline, has_begun=False)
    assert isinstance(answer, Postponed)
    assert graph.calls == []


def test_the_first_of_a_batch_mends_an_estimate_that_was_too_high(clock: Clock) -> None:
    scorer = Scorer(Graph(clock, 1.0), SHAPE, (0, 1), [])
    scorer.pace.took(3600, 1)
    refused, answered = [
        scorer.score([rows(1)], Deadline.after(10), has_begun=has_begun)[0] for has_begun in (True, False)
    ]
    assert isinstance(refused, Postponed)
    assert isinstance(answered, Found)
    assert scorer.pace.expects(1) < 3600


def test_an_item_that_is_refused_is_told_what_to_do(clock: Clock) -> None:
    scorer = Scorer(Graph(clock, 1.0), SHAPE, (0, 1), [])
    scorer._may_mix = False
    [slow, late] = scorer.score([rows(12), rows(4)], Deadline.after(10), has_begun=False)
    assert isinstance(slow, InputError)
    assert isinstance(late, Postponed)
    assert "more than 10 s" in slow.message
    assert "--response-timeout" in slow.hint
    assert late.hint == "Send it again"
