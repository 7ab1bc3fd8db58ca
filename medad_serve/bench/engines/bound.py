"""onnxruntime with inputs and outputs bound to fixed places on a device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medad_serve.bench.engines.base import Session, Subject
from medad_serve.runtime import FloatArray, Outputs

TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}
"""What the graphs of exported models return."""


@dataclass(frozen=True)
class _Bound:
    """The places of one batch size; CUDA graphs replay on them, so that they never move."""

    binding: Any
    input: Any
    outputs: dict[str, Any]
    options: Any


class BoundSession(Session):
    """Runs an onnxruntime session through IO binding; ``device`` is onnxruntime's name of it, cuda or cpu."""

    def __init__(self, session: Any, subject: Subject, device: str, index: int = 0, *, graphs: bool = False) -> None:
        self.session, self.device, self.index, self.graphs = session, device, index, graphs
        self.shapes = {output.name: output.shape for output in subject.outputs}
        self.types = {output.name: TYPES[output.type] for output in session.get_outputs()}
        self.name = session.get_inputs()[0].name
        self.placed: dict[int, _Bound] = {}

    def run(self, batch: FloatArray, names: Sequence[str]) -> Outputs:
        """Copy a batch to its place, run, and copy the outputs asked for back."""
        bound = self._place(batch)
        bound.input.update_inplace(np.ascontiguousarray(batch))
        self._run(bound)
        found = {name: bound.outputs[name].numpy() for name in names}
        if self.device == "cpu":  # what is told there is the place itself, and the next run writes over it
            return {name: value.copy() for name, value in found.items()}
        return found

    def resident(self, batch: FloatArray) -> Callable[[], object] | None:
        """Return a call on a batch that is in its place already."""
        bound = self._place(batch)
        bound.input.update_inplace(np.ascontiguousarray(batch))
        return lambda: self._run(bound)

    def _run(self, bound: _Bound) -> None:
        self.session.run_with_iobinding(bound.binding, bound.options)
        bound.binding.synchronize_outputs()

    def _place(self, batch: FloatArray) -> _Bound:
        if len(batch) not in self.placed:
            self.placed[len(batch)] = self._bind(batch)
        return self.placed[len(batch)]

    def _bind(self, batch: FloatArray) -> _Bound:
        import onnxruntime as ort

        binding, options = self.session.io_binding(), ort.RunOptions()
        if self.graphs:  # one captured graph a batch size, told apart by a number
            options.add_run_config_entry("gpu_graph_id", str(len(self.placed) + 1))
        own = batch.copy()  # on the host the place is the array itself, and later batches are written over it
        place = ort.OrtValue.ortvalue_from_numpy(own, self.device, self.index)
        binding.bind_ortvalue_input(self.name, place)
        outputs = {}
        for name, shape in self.shapes.items():
            outputs[name] = ort.OrtValue.ortvalue_from_shape_and_type(
                (len(batch), *shape), self.types[name], self.device, self.index
            )
            binding.bind_ortvalue_output(name, outputs[name])
        return _Bound(binding, place, outputs, options)
