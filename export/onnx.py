"""Export to one self-contained ONNX file."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import onnx
import torch

from medad_serve.errors import MedadError
from medad_serve.export.graph import TupleOutputs, example
from medad_serve.models import AnomalyModel
from medad_serve.models.base import Shape

INPUT = "image"


def _forget_origin(path: Path) -> None:
    """Drop the stack traces that torch notes at every node: they hold paths of this machine."""
    proto = onnx.load(str(path))
    for part in (*proto.graph.node, *proto.graph.value_info, *proto.graph.initializer, proto.graph):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    onnx.save(proto, str(path))


def export_onnx(model: AnomalyModel, shape: Shape, path: Path) -> None:
    """Write ``model`` with a dynamic batch axis and named outputs, then check the file in full.

    Weights lie inside the file (an ONNX file of at most 2 GiB); raises MedadError naming what cannot be exported.
    """
    for name in ("torch.onnx", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                TupleOutputs(model).eval(),
                (example(shape),),
                dynamo=True,
                input_names=[INPUT],
                output_names=list(model.outputs),
                dynamic_shapes={"x": {0: torch.export.Dim("batch")}},
                verbose=False,
            )
        if program is None:
            raise MedadError("torch.onnx made no program", "Export to torchscript instead")
        program.save(str(path), external_data=False)
        _forget_origin(path)
        onnx.checker.check_model(str(path), full_check=True)
    except (torch.onnx.errors.OnnxExporterError, onnx.checker.ValidationError) as error:
        raise MedadError(f"the model cannot be exported to ONNX ({type(error).__name__})", "See --debug") from error
