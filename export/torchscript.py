"""Export to TorchScript, read back by torch.jit.load alone."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from medad_serve.export.graph import TupleOutputs, example
from medad_serve.models import AnomalyModel
from medad_serve.models.base import Shape


def export_torchscript(model: AnomalyModel, shape: Shape, path: Path) -> None:
    """Trace and freeze ``model``; it returns a tuple in the order of ``model.outputs``."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch deprecates TorchScript; TorchServe still reads it
        traced = torch.jit.trace(  # type: ignore[no-untyped-call]
            TupleOutputs(model).eval(), example(shape)
        )
        torch.jit.freeze(traced.eval()).save(str(path))
