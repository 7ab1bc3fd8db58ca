"""What decoding, preparing, an epoch, an answer and a training step cost; comparisons are interleaved in one run."""

from __future__ import annotations

import io
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import torch
from numpy.typing import NDArray

from medad_serve.artifact import GRAPHS
from medad_serve.data.phantoms.ct_dicom import Encoding, save_ct
from medad_serve.data.phantoms.head_anatomy import Head, head_ct_slice
from medad_serve.export.bundle import EXPORTERS
from medad_serve.export.graph import EagerRuntime
from medad_serve.io import decode
from medad_serve.models import Batch, Family, family
from medad_serve.models.base import device_for
from medad_serve.prep import prepare
from medad_serve.runtime import Runtime, open_runtime
from medad_serve.training.batches import loader

Timings = dict[str, float]


def interleaved(tasks: dict[str, Callable[[], object]], rounds: int) -> Timings:
    """Return the median milliseconds of each task, run in turn so that a noisy machine disturbs all alike."""
    taken: dict[str, list[float]] = {name: [] for name in tasks}
    for number in range(rounds + 1):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            if number:  # the first round warms caches
                taken[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(values) for name, values in taken.items()}


def slice_bytes() -> bytes:
    """Return an uncompressed 512x512 16-bit CT slice of a phantom."""
    rng = np.random.default_rng(0)
    values, _ = head_ct_slice(rng, Head.draw(rng))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slice.dcm"
        encoding = Encoding(signed=True, rle=False)
        save_ct(path, values, patient="bench", index=0, spacing_mm=0.45, encoding=encoding, seed=0)
        return path.read_bytes()


def bench_io(files: Sequence[bytes], chosen: Family, rounds: int = 300) -> Timings:
    """Time decode and decode + prepare beside bare pydicom, over files in memory; per file, milliseconds."""

    def each(task: Callable[[bytes], object]) -> Callable[[], None]:
        def run() -> None:
            for data in files:  # one at a time: results that stay would cost fresh memory pages
                task(data)

        return run

    timings = interleaved(
        {
            "parse: dcmread": each(lambda data: pydicom.dcmread(io.BytesIO(data))),
            "floor: dcmread + pixel_array": each(lambda data: pydicom.dcmread(io.BytesIO(data)).pixel_array),
            "decode": each(decode),
            "decode + prepare": each(lambda data: prepare(decode(data), chosen.prep)),
        },
        rounds,
    )
    return {name: ms / len(files) for name, ms in timings.items()}


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
