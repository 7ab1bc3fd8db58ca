"""The graph files of one model, each made at its first use; those in ONNX are all made of one export in float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import torch

from medad_serve.artifact import graph_of
from medad_serve.export.half import to_float16
from medad_serve.export.onnx import export_onnx
from medad_serve.export.quantize import Choice, Quantizer
from medad_serve.export.subpixel import interleave
from medad_serve.export.surgery import rewrite
from medad_serve.export.torchscript import export_torchscript
from medad_serve.export.winograd import shorten
from medad_serve.models import AnomalyModel
from medad_serve.models.base import Shape
from medad_serve.runtime import FloatArray, Runtime, open_runtime


@dataclass
class Graphs:
    """Makes and opens the graphs of one trained model in a folder."""

    model: AnomalyModel
    shape: Shape
    samples: FloatArray
    """``(N, C, *S)`` prepared items that the ranges of int8 are measured on."""
    folder: Path
    choices: Mapping[str, Choice] = field(default_factory=dict)
    """What int8 quantizes, by file; where nothing was chosen, what a search tries first."""

    def file(self, variant: str) -> Path:
        """Return the graph file of a variant; raises MedadError where it cannot be made."""
        name = graph_of(variant)
        path = self.folder / name
        if not path.exists():
            _MAKERS[name](self, path)
        return path

    def open(self, variant: str, device: str = "cpu") -> Runtime:
        """Open a variant through its file."""
        self.file(variant)
        return open_runtime(self.folder, variant, self.model.outputs, device=device)

    @cached_property
    def exported(self) -> Path:
        """The ONNX graph as it was exported, which the ONNX graphs of every runtime are made of."""
        path = self.folder / "exported.onnx"
        export_onnx(self.model, self.shape, path)
        return path

    @cached_property
    def quantizer(self) -> Quantizer:
        """Of the ONNX graph."""
        return Quantizer.of(self.exported, self.samples)

    def make_anew(self, file: str) -> None:
        """Have a graph made once more at its next use."""
        (self.folder / file).unlink(missing_ok=True)

    def quantize(self, runtime: str, path: Path) -> None:
        """Write the int8 graph of a runtime, by what was chosen."""
        choice = self.choices.get(path.name) or next(self.quantizer.choices(runtime), Choice())
        self.quantizer.write(path, runtime, choice)


_MAKERS: dict[str, Callable[[Graphs, Path], None]] = {
    "model.onnx": lambda graphs, path: rewrite(graphs.exported, path, partial(interleave, runtime="onnx"), shorten),
    "model.openvino.onnx": lambda graphs, path: rewrite(graphs.exported, path, partial(interleave, runtime="openvino")),
    "model.float16.onnx": lambda graphs, path: to_float16(graphs.exported, path),
    "model.int8.onnx": lambda graphs, path: graphs.quantize("onnx", path),
    "model.int8.openvino.onnx": lambda graphs, path: graphs.quantize("openvino", path),
    "model.ts": lambda graphs, path: export_torchscript(graphs.model, graphs.shape, path),
    "model.bfloat16.ts": lambda graphs, path: export_torchscript(graphs.model, graphs.shape, path, torch.bfloat16),
}
