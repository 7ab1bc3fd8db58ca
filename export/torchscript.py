"""Export to TorchScript, read back by torch.jit.load alone."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from medad_serve.export.graph import TupleOutputs, example
from medad_serve.models import AnomalyModel
from medad_serve.models.base import Shape


class Autocast(nn.Module):
    """Computes what autocast allows in a lower precision; floating outputs are float32 as before."""

    def __init__(self, inner: TupleOutputs, precision: torch.dtype) -> None:
        super().__init__()
        self.inner = inner
        self.precision = precision

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map ``(N, C, *S)`` to every output."""
        # without its cache, which a trace would take for constants
        with torch.autocast(x.device.type, self.precision, cache_enabled=False):
            found = self.inner(x)
        return tuple(value.float() if value.is_floating_point() else value for value in found)


def export_torchscript(model: AnomalyModel, shape: Shape, path: Path, precision: torch.dtype = torch.float32) -> None:
    """Trace and freeze ``model``; it returns a tuple in the order of ``model.outputs``."""
    whole: nn.Module = TupleOutputs(model)
    if precision != torch.float32:
        whole = Autocast(TupleOutputs(model), precision)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch deprecates TorchScript; TorchServe still reads it
        traced = torch.jit.trace(whole.eval(), example(shape))  # type: ignore[no-untyped-call]
        torch.jit.freeze(traced.eval()).save(str(path))
