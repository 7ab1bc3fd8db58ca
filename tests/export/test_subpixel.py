from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

from medad_serve.export.subpixel import FORMS, interleave

FLOAT = TensorProto.FLOAT
DOUBLING: dict[str, Any] = {"kernel_size": 4, "stride": 2, "padding": 1}


def _exported(layer: nn.Module, shape: tuple[int, ...], folder: Path) -> onnx.ModelProto:
    """Export ReLU, the layer, ReLU: something has to read what it gives."""
    path, batch = folder / "layer.onnx", torch.export.Dim("batch")
    torch.onnx.export(
        nn.Sequential(nn.ReLU(), layer, nn.ReLU()).eval(),
        (torch.rand(2, *shape),),
        path,
        input_names=["image"],
        dynamic_shapes=({0: batch},),
        dynamo=True,
        verbose=False,
    )
    return onnx.shape_inference.infer_shapes(onnx.load(path))


def _kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("runtime", "size", "channels"),
    [
        *itertools.product(["openvino"], [(5, 7), (1, 1), (3, 5, 4), (1, 2, 1)], [1, 2]),
        *itertools.product(["onnx"], [(9, 4), (12, 5, 8)], [2, 16]),
        ("onnx", (6, 9, 8), 1),
    ],
)
def test_it_gives_what_the_transposed_convolution_of_pytorch_does(
    tmp_path: Path, runtime: str, bias: bool, size: tuple[int, ...], channels: int
) -> None:
    torch.manual_seed(0)
    kind = nn.ConvTranspose2d if len(size) == 2 else nn.ConvTranspose3d
    layer = kind(6, channels, **DOUBLING, bias=bias)
    model = _exported(layer, (6, *size), tmp_path)
    before = {node.name for node in model.graph.node if node.op_type == "ConvTranspose"}
    between = interleave(model.graph, runtime)
    onnx.checker.check_model(model, full_check=True)
    assert "ConvTranspose" not in _kinds(model)
    assert {node.name for node in model.graph.node if node.op_type == "Conv"} == before
    assert len(set(between.values())) == 1
    model.graph.output.extend(map(helper.make_empty_tensor_value_info, between))
    for items in (1, 3):
        x = torch.randn(items, 6, *size)
        with torch.no_grad():
            doubled = layer(x.relu())
        found, *inside = ReferenceEvaluator(model).run(None, {"image": x.numpy()})
        np.testing.assert_allclose(found, doubled.relu().numpy(), atol=1e-5)
        for name, values in zip(between, inside, strict=True):
            if "Conv" not in name or runtime == "openvino":  # onnxruntime's also holds what lies beyond the border
                assert doubled.min() - 1e-5 <= values.min() < values.max() <= doubled.max() + 1e-5


@pytest.mark.parametrize(("runtime", "kernel"), [("openvino", 3), ("onnx", 2)])
def test_weights_that_nothing_reads_are_gone(tmp_path: Path, runtime: str, kernel: int) -> None:
    layer = nn.ConvTranspose2d(3, 2, **DOUBLING)
    model = _exported(layer, (3, 8, 8), tmp_path)
    interleave(model.graph, runtime)
    shapes = [numpy_helper.to_array(each).shape for each in model.graph.initializer if each.data_type == FLOAT]
    assert sorted(shapes) == [(8,), (8, 3, kernel, kernel)]


@pytest.mark.parametrize("runtime", FORMS)
@pytest.mark.parametrize(
    "layer",
    [
        nn.ConvTranspose1d(6, 8, **DOUBLING),
        nn.ConvTranspose2d(6, 2, 2, stride=2),
        nn.ConvTranspose2d(6, 2, 4, stride=2),
        nn.ConvTranspose2d(6, 2, 4, stride=2, padding=1, output_padding=1),
        nn.ConvTranspose2d(6, 2, 4, stride=1, padding=1),
        nn.ConvTranspose2d(6, 2, 4, stride=2, padding=1, dilation=2),
        nn.ConvTranspose2d(6, 4, **DOUBLING, groups=2),
    ],
    ids=str,
)
def test_other_layers_stay_as_they_are(tmp_path: Path, layer: Any, runtime: str) -> None:
    axes = layer.weight.ndim - 2
    model = _exported(layer, (6, *[9] * axes), tmp_path)
    before = model.SerializeToString()
    assert interleave(model.graph, runtime) == {}
    assert model.SerializeToString() == before


@pytest.mark.parametrize(
    ("runtime", "layer", "side"),
    [
        ("openvino", nn.ConvTranspose2d(6, 5, **DOUBLING), 8),  # 20 channels of the convolution
        ("openvino", nn.ConvTranspose3d(6, 3, **DOUBLING), 8),
        ("onnx", nn.ConvTranspose2d(6, 1, **DOUBLING), 8),  # 4 channels
        ("onnx", nn.ConvTranspose2d(6, 16, **DOUBLING), 4),  # 25 places for 16
        ("onnx", nn.ConvTranspose3d(6, 16, **DOUBLING), 6),
    ],
    ids=str,
)
def test_what_a_runtime_computes_faster_as_it_is_stays(
    tmp_path: Path, runtime: str, layer: nn.ConvTranspose2d | nn.ConvTranspose3d, side: int
) -> None:
    model = _exported(layer, (6, *[side] * (layer.weight.ndim - 2)), tmp_path)
    assert interleave(model.graph, runtime) == {}
    assert "ConvTranspose" in _kinds(model)


def _by_hand(nodes: list[onnx.NodeProto], outputs: dict[str, list[Any] | None], sides: list[Any]) -> onnx.ModelProto:
    """Make a graph of ``image (N, 2, *sides)``, or of what has no known shape, and of the constant ``weight``."""
    weight = np.random.default_rng(0).normal(size=(2, 1, 4, 4)).astype(np.float32)
    image = helper.make_tensor_value_info("image", FLOAT, ["batch", 2, *sides] if sides else None)
    ends = [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in outputs.items()]
    graph = helper.make_graph(nodes, "made", [image], ends, [numpy_helper.from_array(weight, "weight")])
    return helper.make_model(graph)


def _doubling(source: str, output: str, name: str = "") -> onnx.NodeProto:
    return helper.make_node("ConvTranspose", [source, "weight"], [output], name, strides=[2, 2], pads=[1, 1, 1, 1])


@pytest.mark.parametrize("sides", [["rows", 8], []])
def test_an_image_of_unknown_size_stays_as_it_is(sides: list[Any]) -> None:
    model = _by_hand([_doubling("image", "out")], {"out": None}, sides)
    interleave(model.graph, "openvino")
    assert _kinds(model) == ["ConvTranspose"]


def test_nodes_without_names_that_share_a_weight_which_is_an_output_too() -> None:
    constant = helper.make_node("Constant", [], ["unread"], value_float=1.0)
    nodes = [
        constant,
        _doubling("image", "one"),
        helper.make_node("Neg", ["image"], ["negative"]),
        _doubling("negative", "two"),
    ]
    shape = ["batch", 1, 6, 10]
    model = _by_hand(nodes, {"one": shape, "two": shape, "weight": [2, 1, 4, 4]}, [3, 5])
    model = onnx.shape_inference.infer_shapes(model)
    x = np.random.default_rng(1).normal(size=(2, 2, 3, 5)).astype(np.float32)
    expected = ReferenceEvaluator(model).run(None, {"image": x})
    interleave(model.graph, "openvino")
    onnx.checker.check_model(model, full_check=True)
    assert _kinds(model) == ["Constant", "Conv", "DepthToSpace", "Neg", "Conv", "DepthToSpace"]
    for found, wanted in zip(ReferenceEvaluator(model).run(None, {"image": x}), expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)
