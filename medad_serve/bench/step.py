"""What a training step costs in time and memory."""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import torch

from medad_serve.bench.tables import Table
from medad_serve.models import Batch, Family, family
from medad_serve.models.base import device_for


@dataclass(frozen=True)
class StepCost:
    """Of one optimizer step."""

    milliseconds: float
    peak_gib: float
    """Of the GPU's memory where there is one, else resident memory of the whole process."""


def _step_cost(name: str, settings: dict[str, object], batch: int, device: str, steps: int) -> StepCost:
    chosen = family(name)
    where = device_for(device)
    model = chosen.build(settings=settings).train().to(where)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-4)
    labels = torch.arange(batch, device=where) % 2 if model.supervised else torch.zeros(batch, dtype=torch.int64)
    taken = []
    for _ in range(steps + 1):
        data = Batch.of(torch.rand(batch, *chosen.shape(chosen.prep), device=where))
        start = time.perf_counter()
        optimizer.zero_grad()
        torch.autograd.backward(model.loss(data._replace(labels=labels.to(where)))["loss"])
        optimizer.step()
        if where.type == "cuda":
            torch.cuda.synchronize(where)
        taken.append((time.perf_counter() - start) * 1e3)
    if where.type == "cuda":
        peak = torch.cuda.max_memory_allocated(where) / 2**30
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
    return StepCost(statistics.median(taken[1:]), peak)


def bench_step(
    chosen: Family, *, settings: dict[str, object] | None = None, batch: int = 2, device: str = "cpu", steps: int = 2
) -> StepCost:
    """Measure a training step at the model's own size, in a process of its own so that the peak is its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_step_cost, chosen.name, settings or {}, batch, device, steps).result()


def bench_steps(chosen: Sequence[Family], *, batch: int, device: str) -> Table:
    """Measure a step of each model as a table."""
    costs = [(each.name, bench_step(each, batch=batch, device=device)) for each in chosen]
    rows = tuple((name, cost.milliseconds, cost.peak_gib) for name, cost in costs)
    return Table("step", f"Training step, batch {batch}", ("model", "ms", "peak GiB"), rows)
