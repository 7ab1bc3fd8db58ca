"""Static int8: an ONNX graph whose convolutions and linear layers compute in 8 bits (QDQ), calibrated on real inputs.

Weights are signed with a scale per channel, activations unsigned with one per tensor, as Krishnamoorthi
(arXiv:1806.08342) recommends and as onnxruntime and OpenVINO both fuse. A codebook lookup is a MatMul and stays in
float32: codes that flip change an answer as a whole.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx

from medad_serve.runtime import FloatArray, OnnxRuntime, run_batched

QUANTIZED = ("Conv", "ConvTranspose", "Gemm")
JOINING = ("Add", "AveragePool", "Concat", "MaxPool", "Mul", "Relu", "Resize", "Sigmoid")
"""Between two layers in int8 these compute in it too, or each would be brought to float32 and back. What the last
layers give, and all that follows, is float32: of a score in 8 bits, 256 values would be left."""
GROUPS = 24
"""Of neighbouring layers, whose sensitivity is measured together."""
SHARES = (1 / 8, 1 / 4, 1 / 2)
"""Of the layers, the most sensitive first, that are left in float32 in turn until a graph is accepted."""


class Choice(NamedTuple):
    """What of a graph computes in int8."""

    in_float: frozenset[str] = frozenset()
    """Layers that stay in float32."""
    joined: bool = True
    """Whether what lies between layers is quantized too."""


@dataclass(frozen=True)
class Quantizer:
    """An ONNX graph with the range of every tensor measured: quantized as often as a search wants."""

    graph: Path
    """Prepared: shapes inferred, constants folded."""
    samples: FloatArray
    ranges: Any
    layers: tuple[str, ...]
    """Names of the nodes that can compute in int8, in the order of the graph."""

    @classmethod
    def of(cls, graph: Path, samples: FloatArray) -> Quantizer:
        """Measure the ranges of a float32 graph over ``samples (N, C, *S)``, one at a time; works beside the graph."""
        from onnxruntime.quantization import CalibrationMethod, create_calibrator
        from onnxruntime.quantization.shape_inference import quant_pre_process

        prepared = graph.with_name("prepared.onnx")
        quant_pre_process(str(graph), str(prepared), skip_symbolic_shape=True)
        calibrator = create_calibrator(
            prepared,
            [*QUANTIZED, *JOINING],
            augmented_model_path=str(graph.with_name("augmented.onnx")),
            calibrate_method=CalibrationMethod.MinMax,
        )
        calibrator.collect_data(_Reader(samples, calibrator.infer_session.get_inputs()[0].name))
        nodes = onnx.load(str(prepared)).graph.node
        layers = tuple(node.name for node in nodes if node.op_type in QUANTIZED)
        return cls(prepared, samples, calibrator.compute_data(), layers)

    def write(self, target: Path, choice: Choice) -> None:
        """Write the graph with the layers chosen in int8, and what joins two of these."""
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        model = onnx.load(str(self.graph))
        layers = set(self.layers) - choice.in_float
        after, before = _after_and_before(model.graph, layers)
        joining = {n.name for n in model.graph.node if n.op_type in JOINING and n.name in after & before}
        chosen = layers | (joining if choice.joined else set())
        kinds = [*QUANTIZED, *JOINING]
        quantizer = QDQQuantizer(
            model,
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=self.ranges,
            nodes_to_quantize=[],
            nodes_to_exclude=[n.name for n in model.graph.node if n.op_type in kinds and n.name not in chosen],
            op_types_to_quantize=kinds,
            extra_options={},
        )
        quantizer.quantize_model()
        _leave_output_in_float(quantizer.model.model.graph, _last(model.graph, layers - before))
        quantizer.model.save_model_to_file(str(target))
        onnx.checker.check_model(str(target), full_check=True)

    def choices(self) -> Iterator[Choice]:
        """Yield what to try: all in int8, the layers alone, then ever fewer, without those that move the score most."""
        if not self.layers:
            return
        yield Choice()
        yield Choice(joined=False)
        ordered = self._by_sensitivity()
        for share in SHARES:
            yield Choice(frozenset(ordered[: max(1, round(share * len(ordered)))]), joined=False)

    def _by_sensitivity(self) -> list[str]:
        """Return the layers, those first which alone in int8 change the scores of the samples most."""
        exact = self._scores(self.graph)
        trial = self.graph.with_name("trial.onnx")
        found: list[tuple[float, list[str]]] = []
        for group in np.array_split(np.array(self.layers), min(GROUPS, len(self.layers))):
            self.write(trial, Choice(frozenset(self.layers) - set(group.tolist()), joined=False))
            change = float(np.sqrt(np.mean(np.square(self._scores(trial) - exact))))
            found.append((change, group.tolist()))
        trial.unlink()
        return [name for _, group in sorted(found, key=lambda each: -each[0]) for name in group]

    def _scores(self, graph: Path) -> np.ndarray[Any, np.dtype[np.float64]]:
        return run_batched(OnnxRuntime(graph), self.samples, ["score"], 1)["score"].astype(np.float64)


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


def _last(graph: onnx.GraphProto, names: Collection[str]) -> set[str]:
    """Return those of the layers that can compute in int8 and give float32.

    Not the transposed convolutions: OpenVINO (2026.4) then gives other numbers than onnxruntime does. What they give
    is an image, for whose mean error 256 values are enough.
    """
    return {node.name for node in graph.node if node.name in names and node.op_type != "ConvTranspose"}


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
