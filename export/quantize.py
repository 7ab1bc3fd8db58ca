"""Static int8: an ONNX graph whose convolutions and linear layers compute in 8 bits (QDQ), calibrated on real inputs.

Weights are signed with a scale per channel, activations have one per tensor, as Krishnamoorthi (arXiv:1806.08342)
recommends. What else is in 8 bits hangs on what a runtime has kernels for and how it fuses them: each has a graph of
its own. A codebook lookup is a MatMul and stays in float32: codes that flip change an answer as a whole.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx

from medad_serve.export.subpixel import interleave
from medad_serve.runtime import FloatArray, OnnxRuntime, OpenVinoRuntime, Runtime, run_batched

JOINING = ("Add", "AveragePool", "Concat", "MaxPool", "Mul", "Relu", "Resize", "Sigmoid")
"""Between two layers in int8 these can compute in it too. What the last layers give, and all that follows, is float32:
of a score in 8 bits, 256 values would be left."""
GROUPS = 24
"""Of neighbouring layers, whose sensitivity is measured together."""
SHARES = (1 / 8, 1 / 4, 1 / 2)
"""Of the layers, the most sensitive first, that are left in float32 in turn until a graph is accepted."""


@dataclass(frozen=True)
class Style:
    """How a runtime wants a graph to be quantized."""

    layers: tuple[str, ...]
    """Types of nodes that it computes in int8; the others it would bring to float32 and back."""
    zero_points: bool
    """Whether it fuses those of activations. Where it does not, activations are unsigned only where none is negative,
    and else signed and symmetric."""
    joins: tuple[bool, ...]
    """Whether what lies between layers is quantized: each in turn."""
    float_outputs: tuple[str, ...] = ()
    """Types of layers whose outputs are not quantized, only what the next layer reads."""
    volume_channels: int = 1
    """Input channels from which on a convolution of volumes is among the layers."""


STYLES = {
    # onnxruntime (1.31) gathers what an int8 convolution of a volume reads a few bytes at a time: of two channels at
    # 128^3 that takes 780 ms, in float32 60.
    "onnx": Style(("Conv", "Gemm"), zero_points=True, joins=(True, False), volume_channels=4),
    # OpenVINO fuses an activation into the layer before it and brings what it gives to 8 bits for the layer after it;
    # told to quantize on both sides, it computes each by itself, and (2026.4) gives other numbers than onnxruntime
    # does. It does the latter also where a transposed convolution gives float32. A zero point becomes a subtraction in
    # float32 of every value.
    "openvino": Style(
        ("Conv", "ConvTranspose", "Gemm"),
        zero_points=False,
        joins=(False,),
        float_outputs=("Conv", "Gemm"),
    ),
}


class Choice(NamedTuple):
    """What of a graph computes in int8."""

    in_float: frozenset[str] = frozenset()
    """Layers that stay in float32."""
    joined: bool = False
    """Whether what lies between layers is quantized too."""


@dataclass(frozen=True)
class Quantizer:
    """An ONNX graph with the range of every tensor measured: quantized as often as a search wants."""

    graph: Path
    """Prepared: shapes inferred, constants folded."""
    samples: FloatArray
    ranges: Any

    @classmethod
    def of(cls, graph: Path, samples: FloatArray) -> Quantizer:
        """Measure the ranges of a float32 graph over ``samples (N, C, *S)``, one at a time; works beside the graph."""
        from onnxruntime.quantization import CalibrationMethod, create_calibrator
        from onnxruntime.quantization.shape_inference import quant_pre_process

        prepared = graph.with_name("prepared.onnx")
        quant_pre_process(str(graph), str(prepared), skip_symbolic_shape=True)
        kinds = {kind for style in STYLES.values() for kind in style.layers}
        calibrator = create_calibrator(
            prepared,
            [*sorted(kinds), *JOINING],
            augmented_model_path=str(graph.with_name("augmented.onnx")),
            calibrate_method=CalibrationMethod.MinMax,
        )
        calibrator.collect_data(_Reader(samples, calibrator.infer_session.get_inputs()[0].name))
        return cls(prepared, samples, calibrator.compute_data())

    def layers(self, runtime: str) -> tuple[str, ...]:
        """Return the names of the nodes that a runtime computes in int8, in the order of the graph."""
        model = onnx.load(str(self.graph))
        interleave(model.graph, runtime)
        return _layers(model.graph, STYLES[runtime])

    def write(self, target: Path, runtime: str, choice: Choice) -> None:
        """Write the graph for a runtime with the layers chosen in int8, and where chosen what joins two of these."""
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.calibrate import TensorsData
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        style = STYLES[runtime]
        model = onnx.load(str(self.graph))
        between = interleave(model.graph, runtime)
        same = {name: self.ranges[output] for name, output in between.items()}
        ranges = TensorsData(self.ranges.calibration_method, self.ranges.data | same)
        kinds = [*style.layers, *JOINING]
        layers = set(_layers(model.graph, style)) - choice.in_float
        after, before = _after_and_before(model.graph, layers)
        joining = {
            n.name
            for n in model.graph.node
            if n.op_type in JOINING and n.name in after & before and between.keys().isdisjoint(n.output)
        }
        chosen = layers | (joining if choice.joined else set())
        quantizer = QDQQuantizer(
            model,
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=ranges,
            nodes_to_quantize=[],
            nodes_to_exclude=[n.name for n in model.graph.node if n.op_type in kinds and n.name not in chosen],
            op_types_to_quantize=kinds,
            extra_options={
                "OpTypesToExcludeOutputQuantization": list(style.float_outputs),
                "TensorQuantOverrides": {} if style.zero_points else self._without_zero_points(model.graph),
            },
        )
        quantizer.quantize_model()
        if not style.float_outputs:
            _leave_output_in_float(quantizer.model.model.graph, layers - before)
        quantizer.model.save_model_to_file(str(target))
        onnx.checker.check_model(str(target), full_check=True)

    def _without_zero_points(self, graph: onnx.GraphProto) -> dict[str, list[dict[str, Any]]]:
        """Return for every activation its type: unsigned, from zero on, or signed around zero."""
        from onnxruntime.quantization import QuantType

        weights = {each.name for each in graph.initializer}
        signed = {name: float(np.min(found.range_value[0])) < 0 for name, found in self.ranges.items()}
        return {
            name: [{"quant_type": QuantType.QInt8 if negative else QuantType.QUInt8, "symmetric": negative}]
            for name, negative in signed.items()
            if name not in weights
        }

    def choices(self, runtime: str) -> Iterator[Choice]:
        """Yield what to try: all layers in int8, then ever fewer, without those that move the score most."""
        layers = self.layers(runtime)
        if not layers:
            return
        for joined in STYLES[runtime].joins:
            yield Choice(joined=joined)
        ordered = self._by_sensitivity(runtime, layers)
        for share in SHARES:
            yield Choice(frozenset(ordered[: max(1, round(share * len(ordered)))]))

    def _by_sensitivity(self, runtime: str, layers: Collection[str]) -> list[str]:
        """Return the layers, those first without which in int8 the scores of the samples are nearest to the exact ones.

        Each group is left out of a graph that is otherwise in int8: what goes wrong between two layers shows too.
        """
        exact = self._scores(OnnxRuntime(self.graph))
        trial = self.graph.with_name("trial.onnx")
        found: list[tuple[float, list[str]]] = []
        for group in np.array_split(np.array(layers), min(GROUPS, len(layers))):
            self.write(trial, runtime, Choice(frozenset(group.tolist())))
            change = float(np.sqrt(np.mean(np.square(self._scores(_open(runtime, trial)) - exact))))
            found.append((change, group.tolist()))
        trial.unlink()
        return [name for _, group in sorted(found, key=lambda each: each[0]) for name in group]

    def _scores(self, runtime: Runtime) -> np.ndarray[Any, np.dtype[np.float64]]:
        return run_batched(runtime, self.samples, ["score"], 1)["score"].astype(np.float64)


def _open(runtime: str, graph: Path) -> Runtime:
    return OpenVinoRuntime(graph, precision="int8") if runtime == "openvino" else OnnxRuntime(graph)


def _layers(graph: onnx.GraphProto, style: Style) -> tuple[str, ...]:
    shapes = {each.name: each.dims for each in graph.initializer}
    found = ((node, shapes.get(node.input[1], ())) for node in graph.node if node.op_type in style.layers)
    return tuple(node.name for node, shape in found if len(shape) < 5 or shape[1] >= style.volume_channels)


def _after_and_before(graph: onnx.GraphProto, layers: Collection[str]) -> tuple[set[str], set[str]]:
    """Return the nodes that some layer leads to, and those that lead to some layer."""
    nodes = list(graph.node)
    return (
        _reached(((node, node.input, node.output) for node in nodes), layers),
        _reached(((node, node.output, node.input) for node in reversed(nodes)), layers),
    )


def _reached(steps: Iterable[tuple[onnx.NodeProto, Iterable[str], Iterable[str]]], layers: Collection[str]) -> set[str]:
    """Return the nodes that the layers lead to; ``steps`` are nodes in order, with where they come from and lead to."""
    carried: set[str] = set()
    reached: set[str] = set()
    for node, sources, targets in steps:
        if not carried.isdisjoint(sources):
            reached.add(node.name)
        if node.name in layers or node.name in reached:
            carried.update(targets)
    return reached


def _leave_output_in_float(graph: onnx.GraphProto, names: Collection[str]) -> None:
    """Take away the pair of nodes that would bring the output of these layers to 8 bits and back."""
    told = {output.name for output in graph.output}
    for node in [node for node in graph.node if node.name in names]:
        for down in [n for n in graph.node if n.op_type == "QuantizeLinear" and n.input[0] == node.output[0]]:
            [up] = [n for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] == down.output[0]]
            graph.node.remove(down)
            graph.node.remove(up)
            _rename(
                graph, *((node.output[0], up.output[0]) if up.output[0] in told else (up.output[0], node.output[0]))
            )


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [new if name == old else name for name in names]


class _Reader:
    """What onnxruntime's calibrators read from."""

    def __init__(self, samples: FloatArray, name: str) -> None:
        self._left = iter(samples)
        self._name = name

    def get_next(self) -> dict[str, FloatArray] | None:
        item = next(self._left, None)
        return None if item is None else {self._name: np.ascontiguousarray(item[np.newaxis])}

    def __iter__(self) -> Iterator[dict[str, FloatArray] | None]:
        return iter(self.get_next, None)
