"""A whole benchmark of a small artifact: what ran, what did not, and what is said of it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from medad_serve.bench import measure
from medad_serve.bench.engines import Session, engine
from medad_serve.bench.engines.base import EAGER, RUN_NEEDED
from medad_serve.bench.fresh import ColdStart
from medad_serve.bench.measure import Plan, bench_engines
from medad_serve.bench.results import Benchmark, told_apart
from medad_serve.errors import MedadError
from medad_serve.runtime import FloatArray, Outputs

FEW = (EAGER, "onnxruntime", "TorchScript", "TensorRT")


def _found(benchmark: Benchmark) -> dict[str, list[tuple[int, int]]]:
    return {each.label: [(t.threads, t.batch) for t in each.times] for each in benchmark.measured}


def test_every_engine_is_timed_at_every_batch_and_number_of_threads(artifact: Path) -> None:
    found = bench_engines(artifact, Plan(batches=(1, 3), threads=(1, 2), seconds=0.02, only=FEW, cold=False))
    each = [(1, 1), (1, 3), (2, 1), (2, 3)]
    assert _found(found) == {EAGER: each, "onnxruntime": each, "TorchScript": each}
    assert found.reference == EAGER
    assert all(t.ratio == 1 for t in found.measured[0].times)
    assert all(measured.agreement.flips == 0 for measured in found.measured)
    assert 0 < max(measured.agreement.relative_difference for measured in found.measured) < 1e-4
    assert found.inputs.endswith("held-out items")
    reasons = {each.label: each.reason for each in found.skipped}
    assert "onnx/int8" in reasons["onnxruntime int8"]
    assert reasons["TensorRT"]


def test_an_artifact_that_stands_alone_is_asked_about_random_items(artifact: Path, tmp_path: Path) -> None:
    alone = Path(shutil.copytree(artifact, tmp_path / "alone"))
    found = bench_engines(alone, Plan(batches=(1,), seconds=0.02, only=FEW, cold=False))
    assert found.reference == "onnxruntime"
    assert found.inputs.endswith("random items")
    assert {each.label: each.reason for each in found.skipped}[EAGER] == RUN_NEEDED


def test_an_engine_that_fails_costs_no_other(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("out of luck\nand more")

    monkeypatch.setattr(engine("TorchScript"), "open", fails)
    found = bench_engines(artifact, Plan(batches=(1,), seconds=0.02, only=FEW, cold=False))
    assert set(_found(found)) == {EAGER, "onnxruntime"}
    reasons = {each.label: each.reason for each in found.skipped}
    assert reasons["TorchScript"] == "failed (RuntimeError: out of luck)"


def test_an_engine_whose_answers_are_not_finite_is_told_and_not_compared(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Overflows(Session):
        def run(self, batch: FloatArray, names: Sequence[str]) -> Outputs:
            return {name: np.full(len(batch), np.inf, np.float32) for name in names}

        def resident(self, batch: FloatArray) -> None:
            return None

    monkeypatch.setattr(engine("TorchScript"), "open", lambda *_: Overflows())
    found = bench_engines(artifact, Plan(batches=(1,), seconds=0.02, only=FEW, cold=False))
    assert "not finite" in {each.label: each.reason for each in found.skipped}["TorchScript"]


def test_an_engine_that_does_not_start_afresh_keeps_its_times(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> ColdStart:
        raise MedadError("onnxruntime ended with -9 (no word)")

    monkeypatch.setattr(measure, "start_fresh", fails)
    (found,) = bench_engines(artifact, Plan(batches=(1,), seconds=0.02, only=("onnxruntime",))).measured
    assert found.cold is None
    assert found.times


def test_benchmarks_of_one_name_are_told_apart(benchmark: Benchmark) -> None:
    other = benchmark.model_copy(update={"name": "chest"})
    assert [each.name for each in told_apart([benchmark, other, benchmark])] == ["head|ct 1", "chest", "head|ct 2"]


def test_nothing_that_runs_is_an_error_with_every_reason(artifact: Path) -> None:
    with pytest.raises(MedadError, match="no engine can run") as refused:
        bench_engines(artifact, Plan(only=("TensorRT",)))
    assert "TensorRT float16" in str(refused.value)
