from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

from medad_serve.export.subpixel import interleave

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
@pytest.mark.parametrize("size", [(5, 7), (1, 1), (3, 5, 4), (1, 2, 1)])
@pytest.mark.parametrize("channels", [1, 2])
def test_it_gives_what_the_transposed_convolution_of_pytorch_does(
    tmp_path: Path, bias: bool, size: tuple[int, ...], channels: int
) -> None:
    torch.manual_seed(0)
    kind = nn.ConvTranspose2d if len(size) == 2 else nn.ConvTranspose3d
    layer = kind(6, channels, **DOUBLING, bias=bias)
    model = _exported(layer, (6, *size), tmp_path)
    before = {node.name for node in model.graph.node if node.op_type == "ConvTranspose"}
    interleave(model.graph)
    onnx.checker.check_model(model, full_check=True)
    assert "ConvTranspose" not in _kinds(model)
    assert {node.name for node in model.graph.node if node.op_type == "Conv"} == before
    for items in (1, 3):
        x = torch.randn(items, 6, *size)
        with torch.no_grad():
            expected = layer(x.relu()).relu().numpy()
        [found] = ReferenceEvaluator(model).run(None, {"image": x.numpy()})
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_weights_that_nothing_reads_are_gone(tmp_path: Path) -> None:
    layer = nn.ConvTranspose2d(3, 1, **DOUBLING)
    model = _exported(layer, (3, 4, 4), tmp_path)
    interleave(model.graph)
    shapes = sorted(numpy_helper.to_array(each).shape for each in model.graph.initializer)
    assert shapes == [(4,), (4, 3, 3, 3)]


@pytest.mark.parametrize(
    "layer",
    [
        nn.ConvTranspose2d(6, 5, **DOUBLING),  # 20 channels of the convolution: too many
        nn.ConvTranspose3d(6, 3, **DOUBLING),
        nn.ConvTranspose1d(6, 1, **DOUBLING),
        nn.ConvTranspose2d(6, 1, 2, stride=2),
        nn.ConvTranspose2d(6, 1, 4, stride=2),
        nn.ConvTranspose2d(6, 1, 4, stride=2, padding=1, output_padding=1),
        nn.ConvTranspose2d(6, 1, 4, stride=1, padding=1),
        nn.ConvTranspose2d(6, 1, 4, stride=2, padding=1, dilation=2),
        nn.ConvTranspose2d(6, 2, **DOUBLING, groups=2),
    ],
    ids=str,
)
def test_other_layers_stay_as_they_are(tmp_path: Path, layer: Any) -> None:
    axes = layer.weight.ndim - 2
    model = _exported(layer, (6, *[6] * axes), tmp_path)
    before = model.SerializeToString()
    interleave(model.graph)
    assert model.SerializeToString() == before


@pytest.mark.parametrize("side", ["rows", None])
def test_an_image_of_unknown_size_stays_as_it_is(side: str | None) -> None:
    weight = np.ones((2, 1, 4, 4), np.float32)
    node = helper.make_node("ConvTranspose", ["image", "weight"], ["out"], "up", strides=[2, 2], pads=[1, 1, 1, 1])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("image", "out")]
    if side:
        ends[0] = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 2, side, 8])
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], [numpy_helper.from_array(weight, "weight")])
    interleave(graph)
    assert [each.op_type for each in graph.node] == ["ConvTranspose"]
