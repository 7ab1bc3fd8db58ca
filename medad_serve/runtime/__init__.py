"""Runtimes behind one call: prepared batch in, named outputs out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from medad_serve.artifact import graph_of
from medad_serve.errors import MedadError
from medad_serve.runtime.calls import (
    MAX_BATCH,
    FloatArray,
    Outputs,
    Runtime,
    Selection,
    batches,
    fitting_batch,
    joined,
    may_mix,
    mixed_batches,
    run_batched,
)
from medad_serve.runtime.onnx import OnnxRuntime
from medad_serve.runtime.openvino import OpenVinoRuntime
from medad_serve.runtime.probe import check_reproduces, probe
from medad_serve.runtime.torchscript import TorchScriptRuntime
from medad_serve.spec import Session, full_name

__all__ = [
    "MAX_BATCH",
    "FloatArray",
    "OnnxRuntime",
    "OpenVinoRuntime",
    "Outputs",
    "Runtime",
    "Selection",
    "TorchScriptRuntime",
    "batches",
    "check_reproduces",
    "fitting_batch",
    "joined",
    "lacking",
    "may_mix",
    "mixed_batches",
    "open_runtime",
    "probe",
    "run_batched",
]

_NEEDS = {"onnx": "onnxruntime", "torchscript": "torch", "openvino": "openvino"}
"""Package of each runtime; the last comes with the extra of its name."""


def lacking(variant: str) -> str | None:
    """Return what this installation lacks to run a variant, in a line, None where it lacks nothing."""
    package = _NEEDS[full_name(variant).partition("/")[0]]
    return None if find_spec(package) else f"{package} is not installed: pip install 'medad-serve[{package}]'"


def open_runtime(
    directory: Path,
    variant: str,
    outputs: Sequence[str],
    *,
    threads: int = 0,
    device: str = "cpu",
    session: Session | None = None,
) -> Runtime:
    """Open the graph of a variant (``onnx``, ``openvino/int8``) in an artifact directory.

    ``threads`` 0 takes every core; ``session`` holds what was tuned. Raises MedadError for a variant that there is
    not, whose graph is not there, or whose package is not installed.
    """
    path = directory / graph_of(variant)
    runtime, _, precision = full_name(variant).partition("/")
    if not path.is_file():
        raise MedadError(f"{path} is missing", f"Run: medad-serve export RUN --format {variant}")
    if reason := lacking(variant):
        raise MedadError(reason, "Or choose another --runtime")
    session = session or Session()
    threads = min(threads or session.threads, session.threads or threads)
    openers: dict[str, Callable[[], Runtime]] = {
        "onnx": lambda: OnnxRuntime(path, threads=threads, device=device, session=session),
        "torchscript": lambda: TorchScriptRuntime(path, outputs, threads=threads, device=device),
        "openvino": lambda: OpenVinoRuntime(path, precision=precision, threads=threads, device=device),
    }
    return openers[runtime]()
