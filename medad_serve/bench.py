"""What decoding, preparing and an epoch cost, beside their floors, interleaved in one run."""

from __future__ import annotations

import io
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pydicom
import torch
from numpy.typing import NDArray

from medad_serve.data.phantoms.ct_dicom import Encoding, save_ct
from medad_serve.data.phantoms.head_anatomy import Head, head_ct_slice
from medad_serve.io import decode
from medad_serve.models import Batch, Family
from medad_serve.prep import prepare
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
