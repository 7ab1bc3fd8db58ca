"""Times of a request's stages, as a header."""

from __future__ import annotations

import time

import pytest

from medad_serve.serving.timing import WHOLE, Laps, read_timing, write_timing


def test_what_is_written_is_read_again() -> None:
    ms = {"decode": 0.71, "hand-over": 12.0, WHOLE: 0.0004}
    assert read_timing(write_timing(ms)) == pytest.approx(ms, abs=5e-4)
    assert write_timing({"decode": 0.7, "infer": 12}) == "decode;dur=0.700, infer;dur=12.000"


def test_others_headers_are_read_as_far_as_they_go() -> None:
    assert read_timing('cache;desc="hit", db;dur=53, app;dur=47.2') == {"db": 53, "app": 47.2}
    assert read_timing("") == {}


def test_a_lap_is_what_passed_since_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.02, 0.025, 0.1, 0.101, 0.2, 0.3])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    laps = Laps()
    laps.lap(0, "read")
    laps.lap(1, "read")
    laps.skip()
    laps.lap(1, "encode")
    told = [read_timing(laps.told(index, {"infer": 5.0})) for index in (0, 1)]
    assert told[0] == pytest.approx({"read": 20, "infer": 5, WHOLE: 200})
    assert told[1] == pytest.approx({"read": 5, "encode": 1, "infer": 5, WHOLE: 300})
