"""float16 and bfloat16 graphs: half the memory and, where the processor has units for them, a multiple of the speed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import onnx

SUMS = ("ReduceMean", "ReduceSum", "ReduceL1", "ReduceL2", "Pow", "Softmax", "LogSoftmax", "ArgMax", "ArgMin", "TopK")
"""Stay in float32: a mean of squared errors over an image loses its value in the 11 bits of float16."""


def to_float16(graph: Path, target: Path) -> None:
    """Write an ONNX graph in float16, its input and outputs in float32 as before."""
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    half = convert_float_to_float16(
        onnx.load(str(graph)), keep_io_types=True, op_block_list=[*DEFAULT_OP_BLOCK_LIST, *SUMS]
    )
    made = OnnxModel(half)
    for twice in _made_twice(half.graph.node):
        made.remove_node(twice)
    half.graph.ClearField("value_info")  # which still tells the types of before
    made.topological_sort()  # the converter appends the casts of the inputs
    onnx.save(made.model, str(target))
    onnx.checker.check_model(str(target), full_check=True)


def _made_twice(nodes: Iterable[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Return casts that repeat one before: the converter writes one for every reader of a constant, under one name."""
    made: set[str] = set()
    twice = []
    for node in nodes:
        if node.op_type == "Cast" and node.output[0] in made:
            twice.append(node)
        made.update(node.output)
    return twice
