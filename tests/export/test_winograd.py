from __future__ import annotations

from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional as F

from medad_serve.export.graphs import Graphs
from medad_serve.export.subpixel import interleave
from medad_serve.export.winograd import CHANNELS, shorten
from medad_serve.models import family

FLOAT = TensorProto.FLOAT
INPUTS, OUTPUTS = 32, 64
Array = NDArray[Any]


def _convolution(weight: Array, bias: Array | None, sides: tuple[int | str, ...], **attributes: Any) -> onnx.ModelProto:
    """Make a graph of one convolution of ``image (N, I, *sides)``."""
    constants = {"weight": weight} | ({} if bias is None else {"bias": bias})
    node = helper.make_node("Conv", ["image", *constants], ["found"], "layer", **attributes)
    inputs = weight.shape[1] * attributes.get("group", 1)
    graph = helper.make_graph(
        [node],
        "made",
        [helper.make_tensor_value_info("image", FLOAT, ["batch", inputs, *sides])],
        [helper.make_tensor_value_info("found", FLOAT, ["batch", len(weight), *[None] * len(sides)])],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return onnx.shape_inference.infer_shapes(model)


def _weight(*shape: int) -> Array:
    return np.random.default_rng(0).normal(size=shape, scale=prod(shape[1:]) ** -0.5).astype(np.float32)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("kernel", "strides", "before", "behind", "sides"),
    [
        ((3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1), (8, 5, 7)),
        ((3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1)),
        ((3, 3, 3), (1, 1, 1), (0, 0, 0), (0, 0, 0), (7, 6, 5)),
        ((3, 2, 2), (1, 1, 2), (2, 0, 1), (2, 0, 0), (6, 4, 5)),
        ((4, 4, 4), (2, 2, 2), (1, 1, 1), (1, 1, 1), (10, 6, 8)),
        ((4, 3, 3), (2, 1, 2), (0, 1, 0), (3, 2, 1), (9, 4, 5)),
        ((6, 2, 2), (3, 2, 1), (2, 0, 0), (1, 0, 0), (24, 4, 3)),
        ((6, 2, 3), (2, 1, 1), (2, 0, 0), (2, 0, 0), (32, 2, 3)),
        ((2, 2, 2), (1, 1, 1), (1, 1, 1), (1, 1, 1), (5, 4, 3)),
        ((2, 2, 2), (1, 1, 1), (0, 1, 0), (1, 0, 1), (17, 3, 2)),
    ],
)
def test_it_gives_what_the_convolution_of_pytorch_does(
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    before: tuple[int, ...],
    behind: tuple[int, ...],
    sides: tuple[int, ...],
    bias: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("medad_serve.export.winograd.WORTH", np.inf)  # small ones too, which are not faster
    weight = _weight(OUTPUTS, INPUTS, *kernel)
    offset = _weight(OUTPUTS) if bias else None
    model = _convolution(weight, offset, sides, kernel_shape=kernel, strides=strides, pads=[*before, *behind])
    shorten(model.graph)
    onnx.checker.check_model(model, full_check=True)
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 3 + kernel[0] // strides[0]  # of four outputs
    session = onnxruntime.InferenceSession(model.SerializeToString())
    pads = [side for pair in reversed([*zip(before, behind, strict=True)]) for side in pair]
    for items in (1, 3):
        x = np.random.default_rng(1).normal(size=(items, INPUTS, *sides)).astype(np.float32)
        exact = F.conv3d(
            F.pad(torch.from_numpy(x).double(), pads),
            torch.from_numpy(weight).double(),
            None if offset is None else torch.from_numpy(offset).double(),
            stride=strides,
        ).numpy()
        (found,) = session.run(None, {"image": x})
        assert found.shape == exact.shape
        assert np.abs(found - exact).max() < 1e-5 * np.abs(exact).max()


def test_a_doubling_layer_that_was_interleaved_is_shortened_too() -> None:
    weight = _weight(INPUTS, INPUTS, 4, 4, 4)
    model = _convolution(weight, None, (15, 12, 10), strides=[2] * 3, pads=[1] * 6)
    model.graph.node[0].op_type = "ConvTranspose"
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("found", FLOAT, ["batch", INPUTS, 30, 24, 20]))
    interleave(model.graph, "onnx")
    shorten(model.graph)
    onnx.checker.check_model(model, full_check=True)
    assert sum(node.op_type == "Conv" for node in model.graph.node) == 5
    x = np.random.default_rng(1).normal(size=(2, INPUTS, 15, 12, 10)).astype(np.float32)
    (found,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"image": x})
    exact = F.conv_transpose3d(*(torch.from_numpy(values).double() for values in (x, weight)), stride=2, padding=1)
    assert np.abs(found - exact.numpy()).max() < 1e-5 * exact.abs().max()


def test_a_wide_model_is_exported_so_for_onnxruntime_alone(tmp_path: Path) -> None:
    chosen = family("vqvae3d")
    prep = chosen.prep.model_copy(update={"size": (32, 32, 32)})
    shape, settings = chosen.shape(prep), {"hidden": [32, 64], "latent_dim": 64, "num_embeddings": 16}
    model = chosen.build(prep, settings).eval()
    graphs = Graphs(model, shape, np.zeros((2, *shape), np.float32), tmp_path)
    convolutions = {
        variant: [node.name for node in onnx.load(graphs.file(variant)).graph.node if node.op_type == "Conv"]
        for variant in ("onnx", "openvino")
    }
    assert len(convolutions["onnx"]) > len(convolutions["openvino"]) + 5


def test_digits_are_kept_in_a_row_of_layers() -> None:
    weights = [_weight(OUTPUTS, OUTPUTS, 3, 3, 3) * 2**0.5 for _ in range(8)]
    model = _convolution(weights[0], None, (8, 8, 8), pads=[1] * 6)
    del model.graph.node[:], model.graph.initializer[:]
    tensors = ["image", *(f"tensor_{i}" for i in range(len(weights) * 2))]
    for i, weight in enumerate(weights):
        model.graph.initializer.append(numpy_helper.from_array(weight, f"weight_{i}"))
    for i, (source, output) in enumerate(pairwise(tensors)):
        node = ("Relu", [source]) if i % 2 else ("Conv", [source, f"weight_{i // 2}"])
        model.graph.node.append(helper.make_node(*node, [output], **({} if i % 2 else {"pads": [1] * 6})))
    model.graph.node[-1].output[0] = "found"
    model = onnx.shape_inference.infer_shapes(model)
    plain = onnxruntime.InferenceSession(model.SerializeToString())
    shorten(model.graph)
    assert sum(node.op_type == "Conv" for node in model.graph.node) == 6 * len(weights)
    short = onnxruntime.InferenceSession(model.SerializeToString())
    x = np.random.default_rng(1).normal(size=(1, OUTPUTS, 8, 8, 8)).astype(np.float32)
    exact = torch.from_numpy(x).double()
    for weight in weights:
        exact = F.conv3d(exact, torch.from_numpy(weight).double(), padding=1).relu()
    lost = [
        np.abs(session.run(None, {"image": x})[0] - exact.numpy()).max() / exact.max().item()
        for session in (plain, short)
    ]
    assert lost[0] < 5e-6
    assert lost[1] < 5e-6


@pytest.mark.parametrize(
    ("channels", "sides", "attributes"),
    [
        ((64, 64, 3, 3), (8, 8), {}),
        ((64, 64, 3), (8,), {}),
        ((63, CHANNELS // 64, 3, 3, 3), (8, 8, 8), {}),
        ((64, 64, 1, 1, 1), (8, 8, 8), {}),
        ((64, 64, 4, 3, 3), (8, 8, 8), {}),
        ((64, 64, 3, 3, 3), (8, 8, 8), {"strides": [2, 1, 1]}),
        ((64, 64, 3, 3, 3), (8, 8, 8), {"strides": [3, 1, 1]}),
        ((64, 64, 3, 3, 3), (8, 8, 8), {"dilations": [2, 1, 1]}),
        ((64, 64, 3, 3, 3), (8, 8, 8), {"group": 2}),
        ((64, 64, 3, 3, 3), (8, 8, 8), {"auto_pad": "SAME_UPPER"}),
        ((64, 64, 3, 3, 3), ("depth", 8, 8), {}),
        ((64, 64, 3, 1, 1), (64, 8, 8), {"pads": [1, 0, 0, 1, 0, 0]}),  # more multiplications for the sums than saved
        ((64, 64, 3, 3, 3), (3, 8, 8), {}),  # one output along the depth, where four are computed
    ],
    ids=str,
)
def test_other_layers_stay_as_they_are(
    channels: tuple[int, ...], sides: tuple[int | str, ...], attributes: dict[str, Any]
) -> None:
    model = _convolution(_weight(*channels), None, sides, **attributes)
    before = model.SerializeToString()
    shorten(model.graph)
    assert model.SerializeToString() == before
