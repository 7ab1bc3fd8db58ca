from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from medad_serve.export.graph import EagerRuntime
from medad_serve.export.graphs import Graphs
from medad_serve.export.quantize import STYLES, Choice
from medad_serve.models import AnomalyModel
from medad_serve.models.base import Batch
from medad_serve.runtime import OnnxRuntime, lacking, run_batched

SHAPE = (1, 8, 8)


class Tiny(AnomalyModel):
    """Two convolutions in a row; ``outlier`` scales one weight of the second far beyond the others."""

    def __init__(self, outlier: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 1, 3, padding=1)
        with torch.no_grad():
            self.second.weight[0, 0, 0, 0] *= outlier

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found = self.second(self.first(x).relu())
        return {"score": found.square().mean(dim=(1, 2, 3)), "heatmap": found}

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        raise AssertionError("nobody trains it")


def _samples(n: int = 6) -> np.ndarray:
    return np.random.default_rng(0).random((n, *SHAPE), np.float32)


@pytest.fixture
def graphs(tmp_path: Path) -> Graphs:
    return Graphs(Tiny().eval(), SHAPE, _samples(), tmp_path)


def _initializers(path: Path) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def test_int8_weights_have_a_scale_for_each_channel(graphs: Graphs) -> None:
    made = _initializers(graphs.file("onnx/int8"))
    weight = graphs.model.get_parameter("first.weight").detach().numpy()
    [quantized] = [value for value in made.values() if value.dtype == np.int8 and value.shape == weight.shape]
    scale = np.abs(weight).max(axis=(1, 2, 3)) / 127
    assert np.abs(quantized - weight / scale.reshape(-1, 1, 1, 1)).max() <= 0.5 + 1e-4
    assert any(value.shape == (4,) and np.allclose(value, scale, rtol=1e-5) for value in made.values())


def test_layers_left_in_float_stay_as_they_were(graphs: Graphs) -> None:
    layers, target = graphs.quantizer.layers("onnx"), graphs.folder / "chosen.onnx"
    assert len(layers) == 2
    graphs.quantizer.write(target, "onnx", Choice(frozenset(layers)))
    exact, found = (OnnxRuntime(path).run(_samples(), ["score"])["score"] for path in (graphs.file("onnx"), target))
    assert np.array_equal(exact, found)
    graphs.quantizer.write(target, "onnx", Choice(frozenset(layers[:1])))
    made = onnx.load(target).graph
    feeds = {name: node.op_type for node in made.node for name in node.output}
    inputs = {node.name: feeds.get(node.input[1]) for node in made.node if node.op_type == "Conv"}
    assert inputs[layers[0]] is None, "its weight is a constant"
    assert inputs[layers[1]] == "DequantizeLinear"


def test_what_joins_layers_is_in_int8_and_what_the_last_one_gives_is_not(graphs: Graphs) -> None:
    made = onnx.load(graphs.file("onnx/int8")).graph
    feeds = {name: node for node in made.node for name in node.output}
    first, second = (node for node in made.node if node.op_type == "Conv")
    assert feeds[second.input[0]].op_type == "DequantizeLinear"
    readers = [node.op_type for node in made.node if second.output[0] in node.input]
    assert readers
    assert "QuantizeLinear" not in readers, "it has the values of float32, not 256 of them"
    assert [node.op_type for node in made.node if first.output[0] in node.input] == ["QuantizeLinear"]
    scores = graphs.open("onnx/int8").run(np.random.default_rng(1).random((400, *SHAPE), np.float32), ["score"])[
        "score"
    ]
    assert len(np.unique(scores)) > 350


@pytest.mark.parametrize("runtime", sorted(STYLES))
def test_the_layer_that_int8_changes_most_stays_in_float_first(tmp_path: Path, runtime: str) -> None:
    if reason := lacking(runtime):
        pytest.skip(reason)
    graphs = Graphs(Tiny(outlier=3000.0).eval(), SHAPE, _samples(), tmp_path)
    first, second = graphs.quantizer.layers(runtime)
    found = [choice.in_float for choice in graphs.quantizer.choices(runtime)]
    whole = len(STYLES[runtime].joins)
    assert not any(found[:whole])
    # Its weights share a scale with one 3000 times as large: all others become zero.
    assert found[whole:] == [{second}] * 3
    assert first != second


def test_a_graph_for_openvino_quantizes_what_layers_read_without_zero_points(tmp_path: Path) -> None:
    graphs = Graphs(Tiny().eval(), SHAPE, _samples() - 0.5, tmp_path)
    path = graphs.file("openvino/int8")
    made, nodes = _initializers(path), onnx.load(path).graph.node
    points = {node.input[0]: made[node.input[2]] for node in nodes if node.op_type == "QuantizeLinear"}
    readers = {node.output[0]: node.input[0] for node in nodes if node.op_type == "DequantizeLinear"}
    layers = [node for node in nodes if node.op_type == "Conv"]
    assert len(points) == len(layers) == 2
    assert all(node.input[0] in readers for node in layers)
    assert all(np.all(point == 0) for point in points.values())
    [image] = [name for name in points if name == "image"]
    assert points[image].dtype == np.int8, "it has negative values"
    assert {point.dtype for name, point in points.items() if name != image} == {np.dtype(np.uint8)}, "after a ReLU"


def test_onnxruntime_has_no_transposed_convolution_in_int8(tmp_path: Path) -> None:
    model = Tiny().eval()
    model.second = nn.ConvTranspose2d(4, 1, 3, padding=1)  # type: ignore[assignment]
    quantizer = Graphs(model, SHAPE, _samples(), tmp_path).quantizer
    assert [len(quantizer.layers(runtime)) for runtime in ("onnx", "openvino")] == [1, 2]


def test_onnxruntime_leaves_convolutions_of_volumes_with_few_channels_in_float(tmp_path: Path) -> None:
    model = Tiny().eval()
    model.first = nn.Conv3d(1, 4, 3, padding=1)  # type: ignore[assignment]
    model.second = nn.Conv3d(4, 1, 3, padding=1)  # type: ignore[assignment]
    model.forward = lambda x: {  # type: ignore[method-assign]
        "score": (found := model.second(model.first(x).relu())).square().mean(dim=(1, 2, 3, 4)),
        "heatmap": found,
    }
    samples = np.random.default_rng(0).random((4, 1, 8, 8, 8), np.float32)
    graphs = Graphs(model, samples.shape[1:], samples, tmp_path)
    both = graphs.quantizer.layers("openvino")
    assert len(both) == 2
    assert graphs.quantizer.layers("onnx") == both[1:]
    nodes = onnx.load(graphs.file("onnx/int8")).graph.node
    feeds = {name: node.op_type for node in nodes for name in node.output}
    read = {node.name: feeds.get(node.input[1]) for node in nodes if node.op_type == "Conv"}
    assert read == {both[0]: None, both[1]: "DequantizeLinear"}


def test_openvino_doubles_an_image_to_one_channel_by_a_convolution_in_int8_and_onnxruntime_as_before(
    tmp_path: Path,
) -> None:
    model = Tiny().eval()
    model.second = nn.ConvTranspose2d(4, 1, 4, stride=2, padding=1)  # type: ignore[assignment]
    graphs = Graphs(model, SHAPE, _samples(), tmp_path)
    kinds = {
        name: [node.op_type for node in onnx.load(graphs.file(name)).graph.node]
        for name in ("onnx", "onnx/int8", "openvino/int8")
    }
    assert all("ConvTranspose" in kinds[name] for name in ("onnx", "onnx/int8"))
    assert "ConvTranspose" not in kinds["openvino/int8"]
    assert "DepthToSpace" in kinds["openvino/int8"]
    nodes = onnx.load(graphs.file("openvino/int8")).graph.node
    feeds = {name: node.op_type for node in nodes for name in node.output}
    layers = [node for node in nodes if node.op_type == "Conv"]
    assert [[feeds[name] for name in node.input[:2]] for node in layers] == [["DequantizeLinear"] * 2] * 2
    exact = graphs.open("onnx").run(_samples(), ["score", "heatmap"])
    found = OnnxRuntime(graphs.file("openvino/int8")).run(_samples(), ["score", "heatmap"])
    assert np.abs(found["heatmap"] - exact["heatmap"]).max() < 0.02 * np.abs(exact["heatmap"]).max()
    assert np.allclose(found["score"], exact["score"], rtol=0.02)


def test_onnxruntime_doubles_a_volume_by_a_convolution_in_int8(tmp_path: Path) -> None:
    model = Tiny().eval()
    model.first = nn.Sequential(  # type: ignore[assignment]
        nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.ConvTranspose3d(4, 4, 4, stride=2, padding=1)
    )
    model.second = nn.ConvTranspose3d(4, 1, 4, stride=2, padding=1)  # type: ignore[assignment]
    model.forward = lambda x: {  # type: ignore[method-assign]
        "score": (found := model.second(model.first(x).relu())).square().mean(dim=(1, 2, 3, 4)),
        "heatmap": found,
    }
    samples = np.random.default_rng(0).random((4, 1, 8, 8, 8), np.float32)
    graphs = Graphs(model, samples.shape[1:], samples, tmp_path)
    exact = EagerRuntime(model).run(samples, ["heatmap"])["heatmap"]
    for joined in (False, True):
        graphs.choices = {"model.int8.onnx": Choice(joined=joined)}
        graphs.make_anew("model.int8.onnx")
        nodes = onnx.load(graphs.file("onnx/int8")).graph.node
        feeds = {name: node.op_type for node in nodes for name in node.output}
        layers = [node for node in nodes if node.op_type.startswith("Conv")]
        assert [(node.op_type, feeds.get(node.input[1])) for node in layers] == [
            ("Conv", None),
            ("Conv", "DequantizeLinear"),
            ("Conv", "DequantizeLinear"),
        ]
        assert [node.op_type for node in nodes if node.op_type == "Concat"], (
            "which joins, in float32, what is in 8 bits"
        )
        assert not any("Concat" in name for node in nodes if node.op_type == "QuantizeLinear" for name in node.input)
        found = graphs.open("onnx/int8").run(samples, ["heatmap"])["heatmap"]
        assert 0 < np.abs(found - exact).max() < 0.02 * np.abs(exact).max()


def test_float16_halves_the_weights_and_keeps_inputs_outputs_and_sums_in_float32(graphs: Graphs) -> None:
    path = graphs.file("onnx/float16")
    made = onnx.load(path).graph
    assert {t.name: t.type.tensor_type.elem_type for t in (*made.input, *made.output)} == {
        "image": onnx.TensorProto.FLOAT,
        "score": onnx.TensorProto.FLOAT,
        "heatmap": onnx.TensorProto.FLOAT,
    }
    weights = [value for value in _initializers(path).values() if value.ndim == 4]
    assert [value.dtype for value in weights] == [np.float16, np.float16]
    exact, found = (graphs.open(name).run(_samples(), ["score"])["score"] for name in ("onnx", "onnx/float16"))
    assert not np.array_equal(exact, found)
    assert np.allclose(exact, found, rtol=8 * np.finfo(np.float16).eps)


def test_bfloat16_rounds_what_float32_does_not(graphs: Graphs) -> None:
    exact, found = (graphs.open(n).run(_samples(), ["score"])["score"] for n in ("torchscript", "torchscript/bfloat16"))
    assert found.dtype == np.float32
    assert not np.array_equal(exact, found)
    assert np.allclose(exact, found, rtol=8 * 2.0**-8)


def test_every_graph_takes_any_batch(graphs: Graphs) -> None:
    for variant in ("onnx/int8", "onnx/float16", "torchscript/bfloat16"):
        runtime = graphs.open(variant)
        whole = run_batched(runtime, _samples(5), ["score", "heatmap"], 5)
        alone = run_batched(runtime, _samples(5), ["score", "heatmap"], 1)
        assert np.allclose(whole["score"], alone["score"], rtol=1e-2)
        assert whole["heatmap"].shape == (5, 1, 8, 8)
