"""The trained model as plain functions of one tensor: eager, and as a tuple for export."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from medad_serve.models import AnomalyModel
from medad_serve.runtime import FloatArray, Outputs, fitting_batch


class TupleOutputs(nn.Module):
    """Returns the model's named outputs as a tuple, in the order of ``model.outputs``."""

    def __init__(self, model: AnomalyModel) -> None:
        super().__init__()
        self.model = model
        self.names = model.outputs

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map ``(N, C, *S)`` to every output."""
        found = self.model(x)
        return tuple(found[name] for name in self.names)


def example(shape: Sequence[int], batch: int = 2) -> Tensor:
    """Return an example batch; more than one item, so that no exporter takes the batch axis for a constant."""
    return torch.rand(batch, *shape, generator=torch.Generator().manual_seed(0))


class EagerRuntime:
    """The trained model behind the same call as the exported ones: what they are held against."""

    def __init__(self, model: AnomalyModel) -> None:
        self.model = model.eval()

    def run(self, batch: FloatArray, names: Sequence[str]) -> Outputs:
        """Run one batch on the device of the model."""
        device = next(self.model.parameters()).device
        with torch.inference_mode():
            found = self.model(torch.from_numpy(batch).to(device))
        return {name: found[name].cpu().numpy() for name in names}

    def ties(self, inputs: FloatArray) -> Outputs:
        """Return how nearly each code is another one, as ``AnomalyModel.ties`` says."""
        device = next(self.model.parameters()).device
        size = fitting_batch(inputs.shape[1:])
        with torch.inference_mode():
            parts = [
                self.model.ties(torch.from_numpy(inputs[start : start + size]).to(device))
                for start in range(0, len(inputs), size)
            ]
        return {name: np.concatenate([part[name].cpu().numpy() for part in parts]) for name in parts[0]}
