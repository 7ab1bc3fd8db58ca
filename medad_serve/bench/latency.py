"""What an answer costs, eager and exported."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from medad_serve.artifact import GRAPHS
from medad_serve.bench.timing import Timings, interleaved
from medad_serve.export.bundle import EXPORTERS
from medad_serve.export.graph import EagerRuntime
from medad_serve.models import Family
from medad_serve.models.base import device_for
from medad_serve.runtime import Runtime, open_runtime


def bench_latency(chosen: Family, *, batch: int = 1, device: str = "cpu", rounds: int = 5) -> Timings:
    """Time an answer of a whole batch at the model's own size, eager and exported, with untrained weights; ms."""
    torch.manual_seed(0)
    model = chosen.build().eval().to(device_for(device))
    x = torch.rand(batch, *chosen.shape(chosen.prep)).numpy()

    def run(runtime: Runtime) -> Callable[[], object]:
        return lambda: runtime.run(x, model.outputs)

    with tempfile.TemporaryDirectory() as folder:
        tasks = {"floor: eager": run(EagerRuntime(model))}
        for kind, exporter in EXPORTERS.items():
            exporter(chosen.build().eval(), chosen.shape(chosen.prep), Path(folder) / GRAPHS[kind])
            tasks[kind] = run(open_runtime(Path(folder), kind, model.outputs, device=device))
        return interleaved(tasks, rounds)
