"""OpenVINO (extra ``openvino``): reads the ONNX files, and has the fastest reduced precisions on Intel and AMD CPUs."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medad_serve.errors import MedadError
from medad_serve.runtime.calls import MIXED, FloatArray, Outputs, joined, spans

HINTS = {"float32": "f32", "bfloat16": "bf16", "int8": "f32", "int8-bfloat16": "bf16"}
"""What is computed in beside the layers that the file itself quantizes."""


class OpenVinoRuntime:
    """OpenVINO on the CPU; safe to share between threads, each of which has requests of its own."""

    def __init__(self, path: Path, *, precision: str = "float32", threads: int = 0, device: str = "cpu") -> None:
        import openvino

        if device != "cpu":
            raise MedadError("the OpenVINO runtime is for the CPU", "Use device=cpu, or the runtime onnx on CUDA")
        self._core = openvino.Core()
        hint = HINTS[precision]
        if hint == "bf16" and "BF16" not in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            # it would compute in float32 and say nothing: not what the cutoffs were made with
            raise MedadError("this CPU has no bfloat16", "Use openvino/float32 or openvino/int8")
        self._settings = {
            "INFERENCE_PRECISION_HINT": hint,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,  # every worker would pin itself to the same cores
        }
        self._compiled: dict[int, Any] = {}
        self._compiling = threading.Lock()
        self._requests = threading.local()
        self._path = path
        try:
            self._graph = self._core.read_model(str(path))
        except RuntimeError as error:
            raise self._refusal(error) from None
        self._model(1)

    def compile(self, most: int) -> None:
        """Compile for every size of a call up to ``most`` items, so that no call has to wait for it."""
        for size in MIXED:
            if size <= most:
                self._model(size)

    def run(self, batch: FloatArray, names: Sequence[str]) -> Outputs:
        """Run one batch, in calls of fixed sizes; the first of a size compiles.

        Where the shape is fixed OpenVINO need not find out at every call what it computes, which takes 2 to 25 % off
        it. A graph for any size would also give other numbers, in int8 by up to a hundredth: all go through these.
        """
        parts = [self._call(batch[rows], names) for rows in spans(len(batch))]
        return joined(parts) if len(parts) > 1 else parts[0]

    def _call(self, batch: FloatArray, names: Sequence[str]) -> Outputs:
        found = self._request(len(batch)).infer({0: batch}, share_inputs=True, share_outputs=True)
        return {name: found[name].copy() for name in names}  # the next call writes over them

    def _request(self, size: int) -> Any:
        own: dict[int, Any] = self._requests.__dict__.setdefault("own", {})
        if size not in own:
            own[size] = self._model(size).create_infer_request()
        return own[size]

    def _model(self, size: int) -> Any:
        """Return the graph compiled for batches of a size."""
        with self._compiling:
            if size not in self._compiled:
                try:
                    graph = self._graph.clone()
                    graph.reshape({0: [size, *graph.input(0).get_partial_shape()[1:]]})
                    self._compiled[size] = self._core.compile_model(graph, "CPU", self._settings)
                except RuntimeError as error:
                    raise self._refusal(error) from None
            return self._compiled[size]

    def _refusal(self, error: RuntimeError) -> MedadError:
        return MedadError(f"OpenVINO cannot load {self._path} ({type(error).__name__})", "Export it again")
