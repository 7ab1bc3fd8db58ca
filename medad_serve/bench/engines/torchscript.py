"""TorchScript once more, rewritten for inference on the machine that runs it."""

from __future__ import annotations

import warnings

from medad_serve.bench.engines.base import Session, Setup, Subject, register
from medad_serve.bench.engines.served import TorchScript
from medad_serve.bench.engines.weights import TorchSession, use_threads


@register
class TorchScriptOptimized(TorchScript):
    """``torch.jit.optimize_for_inference``: convolutions in oneDNN's own layouts, made while it is loaded."""

    name = "TorchScript optimized"
    devices = ("cpu",)
    served = False

    def precisions(self, device: str) -> tuple[str, ...]:
        """Return float32."""
        return ("float32",)

    def open(self, subject: Subject, setup: Setup) -> Session:
        """Load the graph and rewrite it."""
        import torch

        use_threads(setup)
        (path,) = self.files(subject, setup)
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # torch deprecates TorchScript; TorchServe still reads it
            frozen = torch.jit.load(str(path), map_location=setup.device).eval()  # type: ignore[no-untyped-call]
            return TorchSession(torch.jit.optimize_for_inference(frozen), subject, setup)
