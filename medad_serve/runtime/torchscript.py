"""torch.jit: what TorchServe reads by itself, and the way onto a GPU without another package."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from medad_serve.errors import MedadError
from medad_serve.runtime.calls import FloatArray, Outputs


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
