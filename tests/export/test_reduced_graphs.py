from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from medad_serve.export.graphs import Graphs
from medad_serve.export.quantize import Choice
from medad_serve.models import AnomalyModel
from medad_serve.models.base import Batch
from medad_serve.runtime import run_batched

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
    layers = graphs.quantizer.layers
    assert len(layers) == 2
    graphs.quantize(Choice(frozenset(layers)))
    exact, found = (graphs.open(name).run(_samples(), ["score"])["score"] for name in ("onnx", "onnx/int8"))
    assert np.array_equal(exact, found)
    graphs.quantize(Choice(frozenset(layers[:1])))
    made = onnx.load(graphs.file("onnx/int8")).graph
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


def test_the_layer_that_int8_changes_most_stays_in_float_first(tmp_path: Path) -> None:
    graphs = Graphs(Tiny(outlier=3000.0).eval(), SHAPE, _samples(), tmp_path)
    first, second = graphs.quantizer.layers
    choices = list(graphs.quantizer.choices())
    assert choices[:2] == [Choice(), Choice(joined=False)]
    # Its weights share a scale with one 3000 times as large: all others become zero.
    assert choices[2].in_float == {second}
    assert first not in choices[2].in_float


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
