"""onnxruntime on an NVIDIA GPU, with everything that its CUDA provider has for fixed shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medad_serve.artifact import graph_of
from medad_serve.bench.engines.base import Engine, Session, Setup, Subject, register
from medad_serve.bench.engines.bound import BoundSession
from medad_serve.bench.engines.weights import missing_for_torch
from medad_serve.errors import MedadError

Provider = tuple[str, dict[str, Any]]


def device_index(device: str) -> int:
    """Return the number of a CUDA device: 1 of ``cuda:1``."""
    return int(device.partition(":")[2] or 0)


def cuda_provider(device: str, *, graphs: bool) -> Provider:
    """Return the provider and its options: the fastest convolutions found by trying, channels last, CUDA graphs."""
    return (
        "CUDAExecutionProvider",
        {
            "device_id": device_index(device),
            "cudnn_conv_algo_search": "EXHAUSTIVE",
            "cudnn_conv_use_max_workspace": 1,
            "prefer_nhwc": 1,
            "enable_cuda_graph": int(graphs),
            "use_tf32": 0,  # it would move scores by more than calibration, made in float32, allows
        },
    )


def missing_provider(name: str, device: str) -> str | None:
    """Return why a provider of onnxruntime cannot run on a device here."""
    import onnxruntime as ort

    if name not in ort.get_available_providers():
        return f"onnxruntime here has no {name}: install onnxruntime-gpu"
    return missing_for_torch(device)


def open_session(path: Path, providers: list[Provider]) -> Any:
    """Open a graph with the first of ``providers``; raises MedadError where onnxruntime would do without it."""
    import onnxruntime as ort

    ort.set_default_logger_severity(3)
    ort.preload_dlls()  # torch's own CUDA libraries serve both
    session = ort.InferenceSession(str(path), providers=providers)
    if providers[0][0] not in session.get_providers():
        raise MedadError(f"onnxruntime cannot load its {providers[0][0]}", "Check the driver and CUDA's libraries")
    return session


@register
class OnnxCuda(Engine):
    """Bound inputs and outputs, CUDA graphs where the whole graph runs on the GPU."""

    name = "onnxruntime CUDA"
    key = "onnx"
    devices = ("cuda",)

    def precisions(self, device: str) -> tuple[str, ...]:
        """Return the floats: int8 graphs are made for processors."""
        return ("float32", "float16")

    def missing(self, subject: Subject, setup: Setup) -> str | None:
        """Return what is not here."""
        missing = missing_provider("CUDAExecutionProvider", setup.device)
        return missing or subject.lacks(f"{self.key}/{setup.precision}")

    def open(self, subject: Subject, setup: Setup) -> Session:
        """Load the graph; where a node must stay on the host, no CUDA graph can be captured."""
        (path,), place = self.files(subject, setup), device_index(setup.device)
        try:
            session = open_session(path, [cuda_provider(setup.device, graphs=True)])
        except MedadError:
            raise
        except Exception:  # onnxruntime raises a class per status
            return BoundSession(open_session(path, [cuda_provider(setup.device, graphs=False)]), subject, "cuda", place)
        return BoundSession(session, subject, "cuda", place, graphs=True)

    def files(self, subject: Subject, setup: Setup) -> tuple[Path, ...]:
        """Return the graph."""
        return (subject.artifact / graph_of(f"{self.key}/{setup.precision}"),)
