"""Transposed convolutions to few channels, as convolutions whose outputs are interleaved.

A transposed convolution of stride 2 is a convolution with a set of weights for each parity of the output's places
(Shi et al., arXiv:1609.07009). To one channel the transposed one leaves 15 of 16 lanes of a vector idle, and what
follows has a layout with channels innermost: OpenVINO's int8 of ``vqvae3d`` takes 147 ms with it and 118 without.
onnxruntime computes a convolution of volumes in twice the time of a transposed one, so its graphs stay as they are.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

LANES = 16
"""Float32 values of a vector register (AVX-512): so many channels cost as much as one."""
_TAPS = {0: {0: 1, -1: 3}, 1: {0: 2, 1: 0}}
"""By parity of the output's place: which of the 4 weights meets the input at an offset. Output ``2 i + parity`` is met
by input ``i + offset``, at ``2 (i + offset) - 1 + tap``: the padding is 1."""


def interleave(graph: onnx.GraphProto) -> None:
    """Replace what can be: kernel 4, stride 2, padding 1, constant weights, a known shape, few channels.

    The convolution keeps the name of the node that it replaces, and the tensors before and after have theirs.
    """
    constants = {each.name: each for each in graph.initializer}
    shapes = {each.name: _shape(each) for each in (*graph.value_info, *graph.input)}
    left: set[str] = set()
    for node in [node for node in graph.node if node.op_type == "ConvTranspose"]:
        found, shape = [constants.get(name) for name in node.input[1:] if name], shapes.get(node.input[0])
        known = [numpy_helper.to_array(each) for each in found if each is not None]
        if len(known) < len(found) or shape is None or not _fits(node, known[0].shape):
            continue
        chain = _chain(graph, node, known, shape)
        chain.nodes[-1].output[0] = node.output[0]
        nodes = list(graph.node)
        place = nodes.index(node)
        nodes[place : place + 1] = chain.nodes
        del graph.node[:]
        graph.node.extend(nodes)
        left.update(node.input[1:])
    left -= {each.name for each in graph.output}.union(*(node.input for node in graph.node))
    for unread in [each for each in graph.initializer if each.name in left]:
        graph.initializer.remove(unread)


def _shape(tensor: onnx.ValueInfoProto) -> tuple[int, ...] | None:
    """Return (*S), None where a side is not known."""
    sides = tuple(side.dim_value for side in tensor.type.tensor_type.shape.dim[2:])
    return sides if sides and all(sides) else None


def _fits(node: onnx.NodeProto, dims: tuple[int, ...]) -> bool:
    """Whether it has the form of a layer that doubles an image or volume, and few enough channels."""
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
        and dims[1] * 2**axes <= LANES
        and {"strides", "pads"} <= told.keys()
        and not told.get("output_shape")
        and all(told.get(name, value) == value for name, value in wanted.items())
        and list(dims[2:]) == wanted["kernel_shape"]
    )


class _Chain:
    """Nodes in a row, each of which reads what the one before it gives."""

    def __init__(self, graph: onnx.GraphProto, node: onnx.NodeProto) -> None:
        self.graph, self.node, self.last = graph, node, node.input[0]
        self.nodes: list[onnx.NodeProto] = []

    def add(self, kind: str, *constants: NDArray[Any], **attributes: Any) -> None:
        """Append a node with these constants as its further inputs."""
        made = f"{self.node.output[0]}/{kind}_{len(self.nodes)}"
        inputs = [self.last, *(f"{made}/constant_{i}" for i in range(len(constants)))]
        self.graph.initializer.extend(map(numpy_helper.from_array, constants, inputs[1:]))
        self.last = made
        name = made if self.nodes else self.node.name
        self.nodes.append(helper.make_node(kind, inputs, [made], name, **attributes))


def _chain(
    graph: onnx.GraphProto, node: onnx.NodeProto, constants: Sequence[NDArray[Any]], shape: tuple[int, ...]
) -> _Chain:
    """Return nodes that compute what ``node`` does of ``(N, I, *shape)``, by its weight ``(I, O, 4, ...)`` and bias."""
    weight, *bias = constants
    axes, channels = len(shape), weight.shape[1]
    chain = _Chain(graph, node)
    repeated = (each.repeat(2**axes) for each in bias)
    chain.add("Conv", parity_weights(weight), *repeated, kernel_shape=[3] * axes, pads=[1] * 2 * axes)
    if axes == 2:
        chain.add("DepthToSpace", blocksize=2, mode="CRD")
        return chain
    depth, height, width = shape  # depths first, as further images: no runtime is fast at turning seven axes at once
    chain.add("Reshape", np.array([-1, 2, 4, depth, height * width]))
    chain.add("Transpose", perm=[0, 3, 1, 2, 4])
    chain.add("Reshape", np.array([-1, 4, height, width]))
    chain.add("DepthToSpace", blocksize=2, mode="CRD")
    chain.add("Reshape", np.array([-1, channels, 2 * depth, 2 * height, 2 * width]))
    return chain


def parity_weights(weight: NDArray[Any]) -> NDArray[Any]:
    """Return the weights ``(O * 2**axes, I, 3, ...)`` of the convolution, the parity of the last axis varying first."""
    inputs, channels, *kernel = weight.shape
    axes = len(kernel)
    made = np.zeros((*[2] * axes, *[3] * axes, channels, inputs), weight.dtype)
    by_tap = np.moveaxis(weight, (1, 0), (-2, -1))
    for parity in itertools.product((0, 1), repeat=axes):
        for offset in itertools.product(*(_TAPS[each] for each in parity)):
            taps = tuple(_TAPS[p][o] for p, o in zip(parity, offset, strict=True))
            made[(*parity, *(o + 1 for o in offset))] = by_tap[taps]
    # channels, parities, inputs, kernel
    order = (2 * axes, *range(axes), 2 * axes + 1, *range(axes, 2 * axes))
    return made.transpose(order).reshape(channels * 2**axes, inputs, *[3] * axes)
