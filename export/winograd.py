"""Convolutions of volumes by minimal filtering along their depth: the same numbers from about half the products.

For ``m`` neighbouring outputs of a filter of ``r`` taps ``m r`` products are computed; ``m + r - 1``, of sums of inputs
and sums of taps, are enough (Winograd, Arithmetic Complexity of Computations, 1980; Lavin and Gray, arXiv:1509.09308,
for convolutions). Along the depth the sums are a matrix product before and one behind, and each product
is a convolution of heights and widths. With stride ``s`` a filter is ``s`` shorter ones that read every ``s``-th place
each, as further channels.

On a CPU, onnxruntime (1.31) computes convolutions of volumes as matrix products, which are as fast as the processor
can: to compute fewer is what is left. Of ``vqvae3d``, one volume of 128^3 on two cores: 354 and 298 ms. Those of images
it keeps in a layout of their own from layer to layer, which this would break.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.polynomial import polynomial
from numpy.typing import NDArray

from medad_serve.export.surgery import Layer, Make, Nodes, replace

TILE = 4
"""Neighbouring outputs: more save little, and lose digits."""
TAPS = 2, 3
"""Of the filters along the depth."""
POINTS = 0.0, 1.0, -1.0, 0.5, -2.0
"""Where polynomials are taken, beside infinity: so that few digits are lost (Barabasz et al., arXiv:1803.10986)."""
CHANNELS = 2048
"""Input times output channels from which on so many more nodes pay."""
WORTH = 0.9
"""Share of the multiplications, those of the sums too, up to which it is faster."""

Matrix = NDArray[np.float64]


class _Axis(NamedTuple):
    """What a convolution does along an axis."""

    side: int
    kernel: int
    stride: int
    before: int
    """Padding."""
    behind: int

    @property
    def length(self) -> int:
        """Of what it gives."""
        return (self.side + self.before + self.behind - self.kernel) // self.stride + 1


def shorten(graph: onnx.GraphProto) -> None:
    """Replace the convolutions that are faster so: of volumes of known size, with constant weights."""
    replace(graph, "Conv", _choose)


def _choose(layer: Layer) -> Make | None:
    plain = {"dilations": [1, 1, 1], "group": 1, "auto_pad": b"NOTSET"}
    if len(layer.sides) != 3 or not layer.has(plain) or prod(layer.weight.shape[:2]) < CHANNELS:
        return None
    strides, pads = layer.told.get("strides", [1] * 3), layer.told.get("pads", [0] * 6)
    axes = [*map(_Axis, layer.sides, layer.weight.shape[2:], strides, pads[:3], pads[3:])]
    taps, rest = divmod(axes[0].kernel, axes[0].stride)
    fits = taps in TAPS and not rest and _share(layer, axes) <= WORTH
    return partial(_make, layer, axes) if fits else None


def _share(layer: Layer, axes: Sequence[_Axis]) -> float:
    """Return how many multiplications there are for one of the convolution as it is."""
    (outputs, inputs), (depth, *plane) = layer.weight.shape[:2], axes
    rows = (depth.kernel // depth.stride + TILE - 1) * -(-depth.length // TILE)
    before, behind = (prod(sides) for sides in zip(*((axis.side, axis.length) for axis in plane), strict=True))
    before_sums = inputs * depth.stride * rows * depth.side * before
    products = outputs * inputs * depth.stride * rows * prod(axis.kernel for axis in plane) * behind
    behind_sums = outputs * rows * depth.length * behind
    plain = outputs * inputs * depth.kernel * prod(axis.kernel for axis in plane) * depth.length * behind
    return float((before_sums + products + behind_sums) / plain)


def _minimal(taps: int) -> tuple[Matrix, Matrix, Matrix]:
    """Return what the inputs, the taps and the products are multiplied by: ``(P, P), (P, taps), (TILE, P)``.

    ``outputs = third @ ((second @ taps) * (first @ inputs))``, by Toom and Cook. The first and the last are exact.
    """
    points = POINTS[: TILE + taps - 2]
    others = [[other for other in points if other != point] for point in points]
    first = np.zeros((len(points) + 1, len(points) + 1))
    for row, roots in zip(first, [*others, points], strict=True):
        row[: len(roots) + 1] = polynomial.polyfromroots(roots)
    shares = [1 / prod(point - other for other in rest) for point, rest in zip(points, others, strict=True)]
    return first, _powers(points, taps) * np.array([*shares, 1])[:, None], _powers(points, TILE).T


def _powers(points: Sequence[float], count: int) -> Matrix:
    """Return ``(P, count)``: of each point, and last of infinity, where only the highest counts."""
    return np.vstack([polynomial.polyvander(points, count - 1), np.eye(count)[-1:]])


def _make(layer: Layer, axes: Sequence[_Axis], made: Nodes) -> None:
    depth, *plane = axes
    outputs, inputs, _, *kernel = layer.weight.shape
    dtype = layer.weight.dtype
    taps = depth.kernel // depth.stride
    tiles = -(-depth.length // TILE)
    of_inputs, of_taps, of_products = _minimal(taps)
    products = len(of_inputs)

    gather = np.zeros((depth.stride, products, tiles, depth.side))
    for phase, tile, i in np.ndindex(depth.stride, tiles, products):
        place = depth.stride * (tile * TILE + i) + phase - depth.before
        if 0 <= place < depth.side:  # else padding
            gather[phase, :, tile, place] = of_inputs[:, i]
    scatter = np.einsum("ip,tu->tipu", of_products, np.eye(tiles))
    filters = layer.weight.reshape(outputs, inputs, taps, depth.stride, *kernel)
    weights = np.einsum("pt,oits...->pois...", of_taps, filters)

    x = made.reshape(made.source, inputs, depth.side, prod(axis.side for axis in plane))
    x = made.add("MatMul", [gather.reshape(-1, depth.side).astype(dtype), x])
    x = made.reshape(x, inputs * depth.stride, products * tiles, *(axis.side for axis in plane))
    attributes: dict[str, Any] = {
        "kernel_shape": [1, *kernel],
        "strides": [1, *(axis.stride for axis in plane)],
        "pads": [0, *(axis.before for axis in plane), 0, *(axis.behind for axis in plane)],
    }
    parts = []
    for product, (point, weight) in enumerate(zip([*POINTS[: products - 1], np.inf], weights, strict=True)):
        span = [np.array([place]) for place in (product * tiles, product * tiles + tiles, 2)]
        part = made.add("Slice", [x, *span])
        weight = weight.reshape(outputs, -1, 1, *kernel).astype(dtype)
        bias = layer.bias if point == 1 else ()  # one to the power of whatever: its product is added to every output
        parts.append(made.add("Conv", [part, weight, *bias], **attributes))
    x = made.add("Concat", parts, axis=2)
    x = made.reshape(x, outputs, products * tiles, prod(axis.length for axis in plane))
    x = made.add("MatMul", [scatter.reshape(tiles * TILE, -1)[: depth.length].astype(dtype), x])
    made.reshape(x, outputs, *(axis.length for axis in axes))
