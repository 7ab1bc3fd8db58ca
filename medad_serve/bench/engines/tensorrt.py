"""TensorRT through onnxruntime's provider."""

from __future__ import annotations

from ctypes.util import find_library
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from medad_serve.artifact import graph_of
from medad_serve.bench.engines.base import Engine, Session, Setup, Subject, register
from medad_serve.bench.engines.bound import BoundSession
from medad_serve.bench.engines.onnx_cuda import Provider, cuda_provider, device_index, missing_provider, open_session

WHEEL = "tensorrt_libs"
"""Module of the wheel that brings TensorRT's libraries."""


def tensorrt_provider(subject: Subject, setup: Setup, name: str) -> Provider:
    """Return the provider and its options; ``name`` is that of the graph's input.

    Engines are built for the batch sizes asked for and kept, so that a second start does not build again.
    """
    dimensions = "x".join(map(str, subject.shape))
    sizes = {"min": min(setup.batches), "opt": max(setup.batches), "max": max(setup.batches)}
    shapes = {f"trt_profile_{which}_shapes": f"{name}:{size}x{dimensions}" for which, size in sizes.items()}
    return (
        "TensorrtExecutionProvider",
        {
            "device_id": device_index(setup.device),
            "trt_fp16_enable": setup.precision == "float16",
            "trt_cuda_graph_enable": True,
            "trt_engine_cache_enable": True,
            "trt_engine_cache_path": str(subject.scratch / f"tensorrt-{setup.precision}"),
            **shapes,
        },
    )


@register
class TensorRt(Engine):
    """TensorRT where it can, CUDA for the nodes that it leaves; float16 is its own choice by layer."""

    name = "TensorRT"
    key = "onnx"
    devices = ("cuda",)

    def precisions(self, device: str) -> tuple[str, ...]:
        """Return float32, and float16 that TensorRT makes of the same graph."""
        return ("float32", "float16")

    def missing(self, subject: Subject, setup: Setup) -> str | None:
        """Return what is not here."""
        missing = missing_provider("TensorrtExecutionProvider", setup.device)
        if missing := missing or subject.lacks(f"{self.key}/float32"):
            return missing
        return (
            None if find_spec(WHEEL) or find_library("nvinfer") else "TensorRT is not installed: pip install tensorrt"
        )

    def open(self, subject: Subject, setup: Setup) -> Session:
        """Load the graph and build the engine, or read the one that was built before."""
        from medad_serve.export.onnx import INPUT

        if find_spec(WHEEL):
            import_module(WHEEL)  # loads its libraries, where the provider then finds them
        providers = [tensorrt_provider(subject, setup, INPUT), cuda_provider(setup.device, graphs=False)]
        (path,) = self.files(subject, setup)
        return BoundSession(open_session(path, providers), subject, "cuda", device_index(setup.device))

    def files(self, subject: Subject, setup: Setup) -> tuple[Path, ...]:
        """Return the graph."""
        return (subject.artifact / graph_of(f"{self.key}/float32"),)
