"""A ratio that became worse is found, and noise is not."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest

from medad_serve.bench import everything
from medad_serve.bench.engines.base import EAGER
from medad_serve.bench.everything import FOLDER, check_all
from medad_serve.bench.guard import FILE, Ratios, better_of, compare, guard_plan, ratios_of, read_ratios, settle
from medad_serve.bench.machine import this_machine
from medad_serve.bench.results import Benchmark
from medad_serve.errors import MedadError

BEFORE = Ratios(machine="m", seconds=1, tolerance=0.2, ratios={"ae": {"onnxruntime, batch 1": 4.0}})


def test_ratios_are_of_every_engine_but_the_reference(benchmark: Benchmark) -> None:
    assert ratios_of(benchmark) == {"onnxruntime int8, batch 1": 4.0, "onnxruntime int8, batch 8": 4.0}


@pytest.mark.parametrize(("now", "worse"), [(4.0, False), (3.21, False), (3.19, True), (9.0, False)])
def test_a_ratio_is_worse_below_the_tolerance(now: float, worse: bool) -> None:
    (found,) = compare(BEFORE, "ae", {"onnxruntime, batch 1": now})
    assert found.worse == worse


def test_an_engine_that_no_longer_runs_is_worse() -> None:
    (found,) = compare(BEFORE, "ae", {})
    assert found.worse
    assert found.now is None


def test_what_changes_too_much_between_two_passes_guards_nothing_and_is_named() -> None:
    ort, openvino = "onnxruntime, batch 1", "OpenVINO, batch 1"
    found = settle({"ae": ({ort: 4.0, openvino: 2.0}, {ort: 4.2, openvino: 3.2})}, "m", 1)
    assert found.unsteady == (f"ae: {openvino}",)
    assert list(found.ratios["ae"]) == [ort]
    assert found.tolerance == pytest.approx(1 - (4.0 / 4.2) ** 2, abs=1e-3)


def test_the_tolerance_is_twice_the_largest_change_between_two_passes() -> None:
    passes = {"ae": ({"a": 4.0, "b": 2.0}, {"a": 4.4, "b": 2.0}), "vae": ({"a": 1.0}, {"a": 0.95})}
    found = settle(passes, "m", 1)
    assert found.tolerance == pytest.approx(1 - (4.0 / 4.4) ** 2, abs=1e-3)
    assert found.ratios["ae"]["a"] == pytest.approx(math.sqrt(4.0 * 4.4), abs=1e-3)


def test_the_better_of_two_tries_counts() -> None:
    first = compare(BEFORE, "ae", {"onnxruntime, batch 1": 1.0})
    second = compare(BEFORE, "ae", {"onnxruntime, batch 1": 4.1})
    assert [each.worse for each in better_of(first, second)] == [False]
    assert [each.worse for each in better_of(first, first)] == [True]


def test_ratios_of_another_machine_are_not_compared(tmp_path: Path) -> None:
    with pytest.raises(MedadError, match="is missing"):
        read_ratios(tmp_path, "m")
    (tmp_path / FILE).write_text(BEFORE.model_dump_json())
    assert read_ratios(tmp_path, "m") == BEFORE
    with pytest.raises(MedadError, match="this is another"):
        read_ratios(tmp_path, "another")


def test_a_pass_measures_what_serves_by_processor_time() -> None:
    plan = guard_plan(1)
    assert plan.only == (EAGER, "onnxruntime", "OpenVINO", "TorchScript")
    assert (plan.threads, plan.clock) == ((1,), time.process_time)


@pytest.mark.parametrize(("tries", "worse"), [([1.0, 1.1], True), ([1.0, 4.0], False), ([4.0], False)])
def test_a_check_measures_twice_before_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tries: list[float], worse: bool
) -> None:
    (tmp_path / FOLDER).mkdir()
    here = BEFORE.model_copy(update={"machine": this_machine().kind})
    (tmp_path / FOLDER / FILE).write_text(here.model_dump_json())
    left = iter(tries)
    monkeypatch.setattr(everything, "artifact_of", lambda *_: tmp_path)
    monkeypatch.setattr(everything, "_ratios", lambda _: {"onnxruntime, batch 1": next(left)})
    found = check_all((), tmp_path, tmp_path, say=lambda _: None)
    assert [each.worse for each in found] == [worse]
    assert next(left, None) is None
