"""Runtimes behind one call: prepared batch in, named outputs out."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from medad_serve.artifact import GRAPHS
from medad_serve.errors import MedadError

FloatArray = NDArray[np.float32]
Outputs = dict[str, NDArray[Any]]
MAX_BATCH = 32
"""Largest batch in one call: bounds memory where a series of hundreds of slices comes at once."""
MAX_VALUES = 2**22
"""Most input values in one call, though always one item: two volumes of 128^3, 16 slices of 512^2."""


class Runtime(Protocol):
    """Runs one exported (or eager) model."""

    def run(self, batch: FloatArray, names: Sequence[str]) -> Outputs:
        """Map float32 ``(N, C, *S)`` to the outputs asked for."""
        ...


class OnnxRuntime:
    """onnxruntime, on CUDA where ``device`` says so and the provider loads."""

    def __init__(self, path: Path, *, threads: int = 0, device: str = "cpu") -> None:
        import onnxruntime as ort

        ort.set_default_logger_severity(3)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        # threads that spin between runs burn the cores that decoding needs: 40 % of a request of a small model
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers: list[Any] = ["CPUExecutionProvider"]
        if device.startswith("cuda"):
            if "CUDAExecutionProvider" not in ort.get_available_providers():
                raise MedadError("this onnxruntime has no CUDA provider", "Install onnxruntime-gpu or use device=cpu")
            ort.preload_dlls()  # torch's own CUDA libraries serve both
            # TF32 would move scores by more than parity and calibration, both made in float32, allow.
            cuda = {"device_id": int(device.partition(":")[2] or 0), "use_tf32": 0}
            providers.insert(0, ("CUDAExecutionProvider", cuda))
        try:
            self.session = ort.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # onnxruntime raises a class per status
            raise MedadError(f"onnxruntime cannot load {path} ({type(error).__name__})", "Export it again") from None
        if device.startswith("cuda") and "CUDAExecutionProvider" not in self.session.get_providers():
            raise MedadError("onnxruntime cannot use CUDA on this machine", "Check the driver, or use device=cpu")
        self.input = self.session.get_inputs()[0].name

    def run(self, batch: FloatArray, names: Sequence[str]) -> Outputs:
        """Run one batch."""
        return dict(zip(names, self.session.run(list(names), {self.input: batch}), strict=True))


class TorchScriptRuntime:
    """torch.jit; ``outputs`` names the elements of the tuple that the graph returns."""

    def __init__(self, path: Path, outputs: Sequence[str], *, threads: int = 0, device: str = "cpu") -> None:
        import torch

        if threads:
            torch.set_num_threads(threads)
        self.device = torch.device(device)
        torch.backends.cudnn.allow_tf32 = False
        self.outputs = tuple(outputs)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch deprecates TorchScript; TorchServe still reads it
                self.module = torch.jit.load(str(path), map_location=self.device).eval()  # type: ignore[no-untyped-call]
        except (RuntimeError, ValueError) as error:
            raise MedadError(f"torch cannot load {path} ({type(error).__name__})", "Export it again") from None

    def run(self, batch: FloatArray, names: Sequence[str]) -> Outputs:
        """Run one batch."""
        import torch

        with torch.inference_mode():
            found = self.module(torch.from_numpy(batch).to(self.device))
        by_name = dict(zip(self.outputs, found, strict=True))
        return {name: by_name[name].cpu().numpy() for name in names}


def open_runtime(
    directory: Path, runtime: str, outputs: Sequence[str], *, threads: int = 0, device: str = "cpu"
) -> Runtime:
    """Open the graph of ``runtime`` in an artifact directory; ``threads`` 0 takes every core."""
    if runtime not in GRAPHS:
        raise MedadError(f"there is no runtime {runtime!r}", f"Choose one of: {', '.join(GRAPHS)}")
    path = directory / GRAPHS[runtime]
    if not path.is_file():
        raise MedadError(f"{path} is missing", f"Run: medad-serve export RUN --format {runtime}")
    if runtime == "onnx":
        return OnnxRuntime(path, threads=threads, device=device)
    return TorchScriptRuntime(path, outputs, threads=threads, device=device)


@dataclass(frozen=True)
class Selection:
    """Some rows of prepared data, read when they are needed: volumes of a whole data set do not fit into memory."""

    tensor: FloatArray
    rows: NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, ...]:
        """``(rows, C, *S)``."""
        return (len(self.rows), *self.tensor.shape[1:])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> FloatArray:
        return np.asarray(self.tensor[self.rows[part]], np.float32)


def fitting_batch(shape: Sequence[int]) -> int:
    """Return how many items of ``(C, *S)`` go into one call."""
    return max(1, min(MAX_BATCH, MAX_VALUES // math.prod(shape)))


def batches(
    runtime: Runtime, tensor: FloatArray | Selection, names: Sequence[str], batch: int | None = None
) -> Iterator[tuple[slice, Outputs]]:
    """Run any number of items, a call's worth at a time; yield which they were and their outputs."""
    size = batch or fitting_batch(tensor.shape[1:])
    for start in range(0, len(tensor), size):
        rows = slice(start, min(start + size, len(tensor)))
        yield rows, runtime.run(np.ascontiguousarray(tensor[rows]), names)


def run_batched(
    runtime: Runtime, tensor: FloatArray | Selection, names: Sequence[str], batch: int | None = None
) -> Outputs:
    """Run any number of items and keep every output."""
    return joined([outputs for _, outputs in batches(runtime, tensor, names, batch)])


def joined(parts: Sequence[Outputs]) -> Outputs:
    """Put the outputs of several calls, in their order, together."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


MIXED = (8, 4, 2, 1)
"""Sizes of the calls that sources share, where they may."""
_WORTH = 0.85
_MOST_S = 0.03


def may_mix(runtime: Runtime, shape: Sequence[int], values: tuple[float, float], names: Sequence[str]) -> bool:
    """Whether several sources may share a call: their rows then come out bit for bit as alone, and sooner.

    Tried on random items of ``(C, *S)`` within ``values``: kernels choose their order of summation by the shape of
    the batch, so that this depends on model, runtime and machine. On one core of a processor, calls of 8 took
    half as long an item with the autoencoders of 64x64, whose sums do not move, and no less with everything that
    takes 10 ms or more, which is therefore not tried.
    """
    most = min(MIXED[0], fitting_batch(shape))
    tensor = np.random.default_rng(0).uniform(*values, (most, *shape)).astype(np.float32)
    runtime.run(tensor[:1], names)  # the first call prepares
    if most == 1 or _seconds(lambda: runtime.run(tensor[:1], names)) > _MOST_S:
        return False
    alone = run_batched(runtime, tensor, names, 1)
    for size in [size for size in MIXED if 1 < size <= most]:
        found = runtime.run(tensor[:size], names)
        if not all(np.array_equal(found[name], alone[name][:size]) for name in names):
            return False
    one_by_one = min(_seconds(lambda: run_batched(runtime, tensor, names, 1)) for _ in range(3))
    return min(_seconds(lambda: runtime.run(tensor, names)) for _ in range(3)) < _WORTH * one_by_one


def mixed_batches(runtime: Runtime, tensor: FloatArray, names: Sequence[str]) -> Iterator[tuple[slice, Outputs]]:
    """Run items of several sources in the sizes that :func:`may_mix` tried; yield as :func:`batches` does."""
    most, start = fitting_batch(tensor.shape[1:]), 0
    while start < len(tensor):
        size = next(size for size in MIXED if size <= min(len(tensor) - start, most))
        rows = slice(start, start + size)
        yield rows, runtime.run(np.ascontiguousarray(tensor[rows]), names)
        start = rows.stop


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
