"""Transposed convolutions of stride 2, as convolutions whose outputs are interleaved.

A transposed convolution of stride 2 is a convolution with a set of weights for each parity of the output's places
(Shi et al., arXiv:1609.07009). Which form of it is fast hangs on the runtime, so each has a graph of its own. Chosen on
CPUs; ms of ``vqvae3d`` as it was exported and in this form, one volume of 128^3 on two cores:

- onnxruntime (1.31) computes a transposed convolution at half the speed of a convolution, and interleaves fastest by
  joining two halves along each axis in turn: 428 and 367; in int8, for which it has no transposed convolution at all,
  283 and 176.
- OpenVINO (2026.4) is as fast at the transposed one but where the channels are few, for it leaves most lanes of a
  vector idle: float32 394 and 333, bfloat16 297 and 184, int8 147 and 118.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from medad_serve.models.base import Shape

Weights = NDArray[Any]
LANES = 16
"""Float32 values of a vector register (AVX-512): so many channels cost as much as one."""
BORDER = 1.5
"""How many times as many places, with one more along each side, are still worth it."""
_TAPS = (3, 1), (2, 0)
"""By parity of the output's place: the weights, of 4, that meet two neighbours of the input. Output ``2 i + parity`` is
met by input ``j``, at ``2 j - 1 + tap``: the padding is 1."""


@dataclass(frozen=True)
class Form:
    """What a runtime computes in place of a transposed convolution."""

    fits: Callable[[int, Shape], bool]
    """Whether it is faster: by the channels that its convolution gives, and the sides of the input."""
    make: Callable[[_Nodes, _Layer], None]
    """Add nodes that compute the layer."""


def write_interleaved(source: Path, target: Path, runtime: str) -> None:
    """Write a float32 ONNX graph as a runtime computes it fastest."""
    model = onnx.load(str(source))
    interleave(model.graph, runtime)
    onnx.save(model, str(target))
    onnx.checker.check_model(str(target), full_check=True)


def interleave(graph: onnx.GraphProto, runtime: str) -> dict[str, str]:
    """Replace what can be: kernel 4, stride 2, padding 1, constant weights, a known shape, where that is faster.

    The convolution keeps the name of the node that it replaces, and the tensors before and after have theirs. Returns,
    by tensor made between these, the one after them, whose values it holds: all, some, or some beyond its border too.
    """
    form = FORMS[runtime]
    constants = {each.name: each for each in graph.initializer}
    shapes = {each.name: _sides(each) for each in (*graph.value_info, *graph.input)}
    nodes: list[onnx.NodeProto] = []
    made: dict[str, str] = {}
    for node in graph.node:
        found = _layer(node, constants, shapes) if node.op_type == "ConvTranspose" else None
        if found is None or not form.fits(found.weight.shape[1] * 2 ** len(found.sides), found.sides):
            nodes.append(node)
            continue
        replaced = _Nodes(graph, node)
        form.make(replaced, found)
        nodes += replaced.nodes
        made |= dict.fromkeys(replaced.between(), node.output[0])
    if made:
        _replace(graph, nodes)
    return made


def _replace(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> None:
    """Set the nodes of a graph, and drop the constants that only those before them read."""
    before = {name for node in graph.node for name in node.input}
    del graph.node[:]
    graph.node.extend(nodes)
    left = before - {name for node in nodes for name in node.input} - {each.name for each in graph.output}
    for unread in [each for each in graph.initializer if each.name in left]:
        graph.initializer.remove(unread)


class _Layer(NamedTuple):
    """A transposed convolution of ``(N, I, *sides)``."""

    weight: Weights
    """``(I, O, 4, ...)``."""
    bias: Sequence[Weights]
    """One or none."""
    sides: Shape


def _layer(
    node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto], shapes: Mapping[str, Shape]
) -> _Layer | None:
    """Return a layer that doubles an image or volume, None where it is another or not all of it is known."""
    names, sides = [name for name in node.input[1:] if name], shapes.get(node.input[0], ())
    if not sides or not all(sides) or not all(name in constants for name in names):
        return None
    weight, *bias = (numpy_helper.to_array(constants[name]) for name in names)
    return _Layer(weight, bias, sides) if _doubles(node, weight.shape) else None


def _sides(tensor: onnx.ValueInfoProto) -> Shape:
    """Return (*S), 0 where a side is not known."""
    return tuple(side.dim_value for side in tensor.type.tensor_type.shape.dim[2:])


def _doubles(node: onnx.NodeProto, dims: Shape) -> bool:
    """Whether it has the form of a layer that doubles an image or volume."""
    axes = len(dims) - 2
    told = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    wanted = {
        "kernel_shape": [4] * axes,
        "strides": [2] * axes,
        "pads": [1] * 2 * axes,
        "dilations": [1] * axes,
        "output_padding": [0] * axes,
        "group": 1,
        "auto_pad": b"NOTSET",
    }
    return (
        axes in (2, 3)
        and {"strides", "pads"} <= told.keys()
        and not told.get("output_shape")
        and all(told.get(name, value) == value for name, value in wanted.items())
        and list(dims[2:]) == wanted["kernel_shape"]
    )


class _Nodes:
    """Nodes in place of one: the first of them has its name, the last one gives its output."""

    def __init__(self, graph: onnx.GraphProto, node: onnx.NodeProto) -> None:
        self.graph, self.source, self.output = graph, node.input[0], node.output[0]
        self.name = node.name
        self.nodes: list[onnx.NodeProto] = []

    def add(self, kind: str, inputs: Sequence[str], *constants: Weights, **attributes: Any) -> str:
        """Append a node with these constants as its further inputs; return what it gives."""
        made = f"{self.output}/{kind}_{len(self.nodes)}"
        names = [f"{made}/constant_{i}" for i in range(len(constants))]
        self.graph.initializer.extend(map(numpy_helper.from_array, constants, names))
        name = made if self.nodes else self.name
        self.nodes.append(helper.make_node(kind, [*inputs, *names], [made], name, **attributes))
        return made

    def end(self) -> None:
        """Have the last node give what the one replaced gave."""
        self.nodes[-1].output[0] = self.output

    def between(self) -> Iterator[str]:
        """Yield what is neither read nor given outside."""
        return (node.output[0] for node in self.nodes[:-1])


def _kernels(weight: Weights) -> dict[Shape, Weights]:
    """Return, by parity along each axis, the weights ``(O, I, 2, ...)`` of its convolution.

    The last axis varies fastest. Of two neighbours of the input, those of parity 0 lie at the place itself and before
    it, of 1 at it and behind it.
    """
    inputs, outputs, *kernel = weight.shape
    ends = range(inputs), range(outputs)
    return {
        parity: weight[np.ix_(*ends, *(_TAPS[each] for each in parity))].swapaxes(0, 1)
        for parity in itertools.product((0, 1), repeat=len(kernel))
    }


def _weave(made: _Nodes, layer: _Layer) -> None:
    """Convolve with kernel 3, all parities at one place; then depth to space."""
    weight, bias, shape = layer
    axes, (inputs, channels) = len(shape), weight.shape[:2]
    wide = [
        np.pad(each, [(0, 0), (0, 0), *((place, 1 - place) for place in parity)])
        for parity, each in _kernels(weight).items()
    ]
    x = made.add(
        "Conv",
        [made.source],
        np.stack(wide, axis=1).reshape(-1, inputs, *[3] * axes),
        *(each.repeat(2**axes) for each in bias),
        kernel_shape=[3] * axes,
        pads=[1] * 2 * axes,
    )
    if axes == 2:
        made.add("DepthToSpace", [x], blocksize=2, mode="CRD")
    else:
        depth, height, width = shape  # depths first, as further images: none is fast at turning seven axes at once
        x = made.add("Reshape", [x], np.array([-1, 2, 4, depth, height * width]))
        x = made.add("Transpose", [x], perm=[0, 3, 1, 2, 4])
        x = made.add("Reshape", [x], np.array([-1, 4, height, width]))
        x = made.add("DepthToSpace", [x], blocksize=2, mode="CRD")
        made.add("Reshape", [x], np.array([-1, channels, 2 * depth, 2 * height, 2 * width]))
    made.end()


def _join(made: _Nodes, layer: _Layer) -> None:
    """Convolve with kernel 2, by one place more along each axis; cut each parity out, then join two along each axis."""
    weight, bias, shape = layer
    axes, channels = len(shape), weight.shape[1]
    kernels = _kernels(weight)
    x = made.add(
        "Conv",
        [made.source],
        np.concatenate(list(kernels.values())),
        *(np.tile(each, 2**axes) for each in bias),
        kernel_shape=[2] * axes,
        pads=[1] * 2 * axes,
    )
    sides, every = list(shape), np.arange(1, axes + 2)
    parts = [
        made.add("Slice", [x], start, start + np.array([channels, *sides]), every)
        for start in (np.array([i * channels, *parity]) for i, parity in enumerate(kernels))
    ]
    for axis in reversed(range(axes)):
        sides[axis] *= 2
        new = axis + 3
        halves = [made.add("Unsqueeze", [part], np.array([new])) for part in parts]
        pairs = [made.add("Concat", pair, axis=new) for pair in zip(halves[::2], halves[1::2], strict=True)]
        parts = [made.add("Reshape", [pair], np.array([-1, channels, *sides])) for pair in pairs]
    made.end()


FORMS = {
    "onnx": Form(
        lambda channels, shape: channels >= LANES // 2 and prod(side + 1 for side in shape) <= BORDER * prod(shape),
        _join,
    ),
    "openvino": Form(lambda channels, shape: channels <= LANES, _weave),
}
"""By runtime."""
