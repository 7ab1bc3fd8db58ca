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
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod

import numpy as np
import onnx

from medad_serve.export.surgery import Layer, Make, Nodes, Weights, replace
from medad_serve.models.base import Shape

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
    make: Callable[[Layer, Nodes], object]
    """Add nodes that compute the layer."""


def interleave(graph: onnx.GraphProto, runtime: str) -> dict[str, str]:
    """Replace what can be: kernel 4, stride 2, padding 1, constant weights, a known shape, where that is faster.

    The convolution keeps the name of the node that it replaces, and the tensors before and after have theirs. Returns,
    by tensor made between these, the one after them, whose values it holds: all, some, or some beyond its border too.
    """
    form = FORMS[runtime]

    def choose(layer: Layer) -> Make | None:
        if not _doubles(layer) or not form.fits(layer.weight.shape[1] * 2 ** len(layer.sides), layer.sides):
            return None
        return partial(form.make, layer)

    return replace(graph, "ConvTranspose", choose)


def _doubles(layer: Layer) -> bool:
    """Whether it has the form of a layer that doubles an image or volume; its weights are ``(I, O, 4, ...)``."""
    axes = len(layer.sides)
    return (
        axes in (2, 3)
        and {"strides", "pads"} <= layer.told.keys()
        and not layer.told.get("output_shape")
        and layer.weight.shape[2:] == (4,) * axes
        and layer.has(
            {
                "strides": [2] * axes,
                "pads": [1] * 2 * axes,
                "dilations": [1] * axes,
                "output_padding": [0] * axes,
                "group": 1,
                "auto_pad": b"NOTSET",
            }
        )
    )


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


def _weave(layer: Layer, made: Nodes) -> None:
    """Convolve with kernel 3, all parities at one place; then depth to space."""
    axes, (inputs, channels) = len(layer.sides), layer.weight.shape[:2]
    wide = [
        np.pad(each, [(0, 0), (0, 0), *((place, 1 - place) for place in parity)])
        for parity, each in _kernels(layer.weight).items()
    ]
    x = made.add(
        "Conv",
        [
            made.source,
            np.stack(wide, axis=1).reshape(-1, inputs, *[3] * axes),
            *(each.repeat(2**axes) for each in layer.bias),
        ],
        kernel_shape=[3] * axes,
        pads=[1] * 2 * axes,
    )
    if axes == 2:
        made.add("DepthToSpace", [x], blocksize=2, mode="CRD")
        return
    depth, height, width = layer.sides  # depths first, as further images: none is fast at turning seven axes at once
    x = made.reshape(x, 2, 4, depth, height * width)
    x = made.add("Transpose", [x], perm=[0, 3, 1, 2, 4])
    x = made.reshape(x, 4, height, width)
    x = made.add("DepthToSpace", [x], blocksize=2, mode="CRD")
    made.reshape(x, channels, 2 * depth, 2 * height, 2 * width)


def _join(layer: Layer, made: Nodes) -> None:
    """Convolve with kernel 2, by one place more along each axis; cut each parity out, then join two along each axis."""
    axes, channels = len(layer.sides), layer.weight.shape[1]
    kernels = _kernels(layer.weight)
    x = made.add(
        "Conv",
        [made.source, np.concatenate(list(kernels.values())), *(np.tile(each, 2**axes) for each in layer.bias)],
        kernel_shape=[2] * axes,
        pads=[1] * 2 * axes,
    )
    sides, every = list(layer.sides), np.arange(1, axes + 2)
    parts = [
        made.add("Slice", [x, start, start + np.array([channels, *sides]), every])
        for start in (np.array([i * channels, *parity]) for i, parity in enumerate(kernels))
    ]
    for axis in reversed(range(axes)):
        sides[axis] *= 2
        new = axis + 3
        halves = [made.add("Unsqueeze", [part, np.array([new])]) for part in parts]
        pairs = [made.add("Concat", pair, axis=new) for pair in zip(halves[::2], halves[1::2], strict=True)]
        parts = [made.reshape(pair, channels, *sides) for pair in pairs]


FORMS = {
    "onnx": Form(
        lambda channels, shape: channels >= LANES // 2 and prod(side + 1 for side in shape) <= BORDER * prod(shape),
        _join,
    ),
    "openvino": Form(lambda channels, shape: channels <= LANES, _weave),
}
"""By runtime."""
