"""Layers of an ONNX graph, replaced by nodes that give the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from medad_serve.models.base import Shape

Weights = NDArray[Any]


@dataclass(frozen=True)
class Layer:
    """A layer of constant weights that reads ``(N, I, *sides)``, whose sides are known."""

    node: onnx.NodeProto
    weight: Weights
    bias: Sequence[Weights]
    """One or none."""
    sides: Shape

    @cached_property
    def told(self) -> dict[str, Any]:
        """The attributes of its node."""
        return {each.name: helper.get_attribute_value(each) for each in self.node.attribute}

    def has(self, wanted: Mapping[str, Any]) -> bool:
        """Whether its attributes, where they are told, have these values."""
        return all(self.told.get(name, value) == value for name, value in wanted.items())


class Nodes:
    """Nodes in place of one: the first of them has its name, the last one gives its output."""

    def __init__(self, graph: onnx.GraphProto, node: onnx.NodeProto) -> None:
        self.graph, self.source, self.output = graph, node.input[0], node.output[0]
        self.name = node.name
        self.nodes: list[onnx.NodeProto] = []

    def add(self, kind: str, inputs: Sequence[str | Weights], **attributes: Any) -> str:
        """Append a node of these tensors, given by name, and constants; return what it gives."""
        made = f"{self.output}/{kind}_{len(self.nodes)}"
        names = [
            each if isinstance(each, str) else self._constant(each, f"{made}/constant_{i}")
            for i, each in enumerate(inputs)
        ]
        name = made if self.nodes else self.name
        self.nodes.append(helper.make_node(kind, names, [made], name, **attributes))
        return made

    def reshape(self, source: str, *sides: int) -> str:
        """Append a Reshape to ``(N, *sides)``."""
        return self.add("Reshape", [source, np.array([-1, *sides])])

    def _constant(self, values: Weights, name: str) -> str:
        self.graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    def between(self) -> Iterator[str]:
        """Yield what is neither read nor given outside."""
        return (node.output[0] for node in self.nodes[:-1])


Make = Callable[[Nodes], object]
"""Adds what takes the place of a layer."""


def rewrite(source: Path, target: Path, *changes: Callable[[onnx.GraphProto], object]) -> None:
    """Write an ONNX file with its graph changed, and check it in full."""
    model = onnx.load(str(source))
    for change in changes:
        change(model.graph)
    onnx.save(model, str(target))
    onnx.checker.check_model(str(target), full_check=True)


def replace(graph: onnx.GraphProto, kind: str, choose: Callable[[Layer], Make | None]) -> dict[str, str]:
    """Replace the layers of a type of node that ``choose`` has something for.

    The first node has the name of the one replaced, and the tensors before and after have theirs. Returns, by tensor
    made between these, the one after them.
    """
    given = {each.name for each in graph.input}
    constants = {each.name: each for each in graph.initializer if each.name not in given}
    sides = {each.name: _sides(each) for each in (*graph.value_info, *graph.input)}
    nodes: list[onnx.NodeProto] = []
    made: dict[str, str] = {}
    for node in graph.node:
        layer = _layer(node, constants, sides) if node.op_type == kind else None
        make = layer and choose(layer)
        if not make:
            nodes.append(node)
            continue
        new = Nodes(graph, node)
        make(new)
        new.nodes[-1].output[0] = new.output
        nodes += new.nodes
        made |= dict.fromkeys(new.between(), new.output)
    if made:
        _set_nodes(graph, nodes)
    return made


def _layer(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto], sides: Mapping[str, Shape]) -> Layer | None:
    """Return a layer, None where not all of it is known."""
    names, known = [name for name in node.input[1:] if name], sides.get(node.input[0], ())
    if not known or not all(known) or not all(name in constants for name in names):
        return None
    weight, *bias = (numpy_helper.to_array(constants[name]) for name in names)
    return Layer(node, weight, bias, known)


def _sides(tensor: onnx.ValueInfoProto) -> Shape:
    """Return (*S), 0 where a side is not known."""
    return tuple(side.dim_value for side in tensor.type.tensor_type.shape.dim[2:])


def _set_nodes(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> None:
    """Set the nodes of a graph, and drop the constants that only those before them read."""
    before = {name for node in graph.node for name in node.input}
    del graph.node[:]
    graph.node.extend(nodes)
    left = before - {name for node in nodes for name in node.input} - {each.name for each in graph.output}
    for unread in [each for each in graph.initializer if each.name in left]:
        graph.initializer.remove(unread)
