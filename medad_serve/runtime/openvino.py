"""OpenVINO (extra ``openvino``): reads the ONNX files, and has the fastest reduced precisions on Intel and AMD CPUs."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medad_serve.errors import MedadError
from medad_serve.runtime.calls import FloatArray, Outputs

HINTS = {"float32": "f32", "bfloat16": "bf16", "int8": "f32", "int8-bfloat16": "bf16"}
"""What is computed in beside the layers that the file itself quantizes."""


class OpenVinoRuntime:
    """OpenVINO on the CPU; safe to share between threads, each of which has a request of its own."""

    def __init__(self, path: Path, *, precision: str = "float32", threads: int = 0, device: str = "cpu") -> None:
        import openvino

        if device != "cpu":
            raise MedadError("the OpenVINO runtime is for the CPU", "Use device=cpu, or the runtime onnx on CUDA")
        core = openvino.Core()
        hint = HINTS[precision]
        if hint == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            # it would compute in float32 and say nothing: not what the cutoffs were made with
            raise MedadError("this CPU has no bfloat16", "Use openvino/float32 or openvino/int8")
        settings = {
            "INFERENCE_PRECISION_HINT": hint,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,  # every worker would pin itself to the same cores
        }
        try:
            self.model = core.compile_model(core.read_model(str(path)), "CPU", settings)
        except RuntimeError as error:
            raise MedadError(f"OpenVINO cannot load {path} ({type(error).__name__})", "Export it again") from None
        self._requests = threading.local()

    def run(self, batch: FloatArray, names: Sequence[str]) -> Outputs:
        """Run one batch."""
        found = self._request().infer({0: batch}, share_inputs=True, share_outputs=True)
        return {name: found[name].copy() for name in names}  # the next run writes over them

    def _request(self) -> Any:
        if not hasattr(self._requests, "own"):
            self._requests.own = self.model.create_infer_request()
        return self._requests.own
