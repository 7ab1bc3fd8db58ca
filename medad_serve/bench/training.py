"""What an epoch over the cache and a training step cost."""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from medad_serve.bench.timing import Timings, interleaved
from medad_serve.models import Batch, Family, family
from medad_serve.models.base import device_for
from medad_serve.training.batches import loader


def bench_epoch(chosen: Family, *, images: int = 1024, batch: int = 64, rounds: int = 5) -> Timings:
    """Time a training epoch over the memory-mapped cache beside one over a tensor in memory; milliseconds."""
    shape = chosen.shape(chosen.prep)
    resident = torch.rand(images, *shape)
    model = chosen.build().train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)

    def step(x: torch.Tensor) -> None:
        optimizer.zero_grad()
        torch.autograd.backward(model.loss(Batch.of(x))["loss"])
        optimizer.step()

    def in_memory() -> None:
        order = torch.randperm(images)
        for start in range(0, images - batch + 1, batch):
            step(resident[order[start : start + batch]])

    def cached(tensor: NDArray[np.float32]) -> None:
        for x, *_ in loader(tensor, np.zeros(images, np.int64), np.arange(images), batch, shuffle=True):
            step(x)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tensor.npy"
        np.save(path, resident.numpy())
        mapped = np.load(path, mmap_mode="r")
        return interleaved({"floor: tensor in memory": in_memory, "cache": lambda: cached(mapped)}, rounds)


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
