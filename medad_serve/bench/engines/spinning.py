"""onnxruntime once more, with threads that spin for as long as a call lasts: what ``medad-serve tune`` may choose.

They are sooner awake, and take the time of whatever else runs: two processes that spin on two cores were measured to
answer half as much (``ae``, ``efficientnet_b0``) as two whose threads sleep.
"""

from __future__ import annotations

from medad_serve.bench.engines.base import register
from medad_serve.bench.engines.served import Onnx
from medad_serve.spec import Session


@register
class OnnxSpinning(Onnx):
    """onnxruntime on the CPU, alone on its cores."""

    name = "onnxruntime spinning"
    served = False
    options = Session(spinning=True)

    def precisions(self, device: str) -> tuple[str, ...]:
        """Return float32."""
        return ("float32",)
