"""onnxruntime: the CPU everywhere, CUDA where its provider loads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medad_serve.errors import MedadError
from medad_serve.runtime.calls import FloatArray, Outputs
from medad_serve.spec import Session


class OnnxRuntime:
    """onnxruntime, on CUDA where ``device`` says so and the provider loads."""

    def __init__(self, path: Path, *, threads: int = 0, device: str = "cpu", session: Session | None = None) -> None:
        import onnxruntime as ort

        ort.set_default_logger_severity(3)
        options = session_options(session or Session(), threads)
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


def session_options(session: Session, threads: int) -> Any:
    """Return onnxruntime's options; ``threads`` 0 takes every core."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_cpu_mem_arena = session.arena
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_ENABLE_{session.optimization.upper()}")
    # threads that spin between runs burn the cores that decoding needs: 40 % of a request of a small model
    entry = ("session.force_spinning_stop", "1") if session.spinning else ("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry(*entry)
    return options
