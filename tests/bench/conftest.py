"""A report as a benchmark would leave it, its figures made up."""

from __future__ import annotations

import pytest

from medad_serve.bench.fresh import ColdStart
from medad_serve.bench.machine import Machine
from medad_serve.bench.results import Agreement, Benchmark, Measured, Report, Skipped, Timed
from medad_serve.spec import Fidelity


def _measured(engine: str, precision: str, ratio: float) -> Measured:
    times = tuple(
        Timed(
            batch=batch,
            threads=2,
            calls=50,
            p50_ms=10 * batch / ratio,
            p95_ms=12 * batch / ratio,
            p99_ms=None,
            items_per_s=100 * ratio,
            ratio=ratio,
        )
        for batch in (1, 8)
    )
    cold = ColdStart(import_s=0.5, load_s=0.25, first_s=0.05, peak_mib=100.5)
    agreement = Agreement(items=4, relative_difference=1e-6, codes_differ=None, flips=0)
    return Measured(
        engine=engine, precision=precision, times=times, disk_mib=17.0, build_s=None, cold=cold, agreement=agreement
    )


@pytest.fixture
def benchmark() -> Benchmark:
    """Of three engines, one of which did not run."""
    return Benchmark(
        name="head|ct",
        family="ae",
        parameters=4_487_248,
        shape=(1, 64, 64),
        device="cpu",
        inputs="4 held-out items",
        reference="PyTorch eager",
        measured=(_measured("PyTorch eager", "float32", 1.0), _measured("onnxruntime", "int8", 4.0)),
        skipped=(Skipped(engine="TensorRT", precision="float32", reason="PyTorch finds no CUDA device"),),
    )


@pytest.fixture
def fidelity() -> Fidelity:
    """Of a variant in reduced precision."""
    return Fidelity(
        variant="onnx/int8",
        items=40,
        auroc=0.91,
        auroc_trained=0.912,
        correlation=0.9987,
        agreement=0.975,
        max_relative_difference=0.01,
        layers=9,
        float_layers=2,
    )


@pytest.fixture
def report(benchmark: Benchmark) -> Report:
    """Of that benchmark alone."""
    machine = Machine(
        cpu="Some CPU",
        cores=2,
        memory_gib=8,
        flags=("avx2",),
        governor="unknown",
        load=0.5,
        gpus=(),
        system="Linux",
        versions={"python": "3.11"},
    )
    return Report(machine=machine, seconds=3, benchmarks=(benchmark,))
