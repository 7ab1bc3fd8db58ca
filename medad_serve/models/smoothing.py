"""Means and maxima over boxes and channels, and maps made larger: what stands between a network and its scores.

Means over a box are sums of shifted copies along each axis, and values repeat by being read several times: plain
arithmetic, which mixed precision and OpenVINO's bfloat16 leave in float32, as they do not leave products with a
matrix. :func:`enlarged` is such a product, for maps that no score is made of. Pooling and resizing a volume of one
channel is what runtimes do worst (onnxruntime at 128x128x128, two cores: 64 ms for 18, and 20 for 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional as F

_MAXIMA = {2: F.max_pool2d, 3: F.max_pool3d}


def box_mean(x: Tensor, side: int, *, padded: bool = True) -> Tensor:
    """Return the mean over a box of odd ``side`` around each place of ``(N, C, *S)``, in float32.

    Beyond the border lies 0, which counts where ``padded``.
    """
    total, reach = x.float(), side // 2
    for axis in range(2, x.ndim) if side > 1 else ():
        # a step along the axis is ``step`` values further; an axis of its own for these would be one of length 1 at
        # the last, along which OpenVINO computes a value at a time
        rows, step = total.flatten(axis).flatten(0, axis - 1), math.prod(x.shape[axis + 1 :])
        sums = _window_sum(F.pad(rows, (reach * step, reach * step)), side, step)
        if padded:
            sums = sums / side
        else:
            last, place = x.shape[axis] - 1, _places(x.shape[axis], x)
            within = (place + reach).clamp(max=last) - (place - reach).clamp(min=0) + 1
            sums = sums / within.repeat_interleave(step)
        total = sums.reshape(x.shape)
    return total


def _window_sum(x: Tensor, side: int, step: int) -> Tensor:
    """Return sums of ``side`` values that lie ``step`` apart in ``(P, n)``: ``(P, n - (side - 1) * step)``.

    From windows of 1, 2, 4 and more values, each the sum of two of those before: log2(side) sums, not side.
    """
    count, width, start = x.shape[1] - (side - 1) * step, 1, 0
    parts: list[Tensor] = []
    while True:
        if side & width:
            parts.append(x.narrow(1, start * step, count))
            start += width
        if 2 * width > side:
            break
        left = x.shape[1] - width * step
        x = x.narrow(1, 0, left) + x.narrow(1, width * step, left)
        width *= 2
    return reduce(torch.add, parts)


def box_max(x: Tensor, side: int) -> Tensor:
    """Return the maximum over a box of odd ``side`` around each place of ``(N, C, *S)``."""
    pool, axes = _MAXIMA[x.ndim - 2], range(x.ndim - 2)
    for along in axes:
        kernel = [side if axis == along else 1 for axis in axes]
        x = pool(x, kernel, stride=1, padding=[length // 2 for length in kernel])
    return x


def repeated(x: Tensor, times: int) -> Tensor:
    """Return ``(N, C, *S)`` with each value ``times`` times along each axis, as the nearest one of a larger map."""
    for axis in reversed(range(2, x.ndim)) if times > 1 else ():
        sizes = [times if each == axis + 1 else -1 for each in range(x.ndim + 1)]
        x = x.unsqueeze(axis + 1).expand(sizes).flatten(axis, axis + 1)
    return x


def enlarged(x: Tensor, size: Sequence[int]) -> Tensor:
    """Interpolate ``(N, C, *S)`` linearly along each axis, as ``F.interpolate`` with ``align_corners=False`` does.

    By a product with a matrix along each axis: to resize takes OpenVINO 0.35 ms of ``efficientnet_b0``'s 5, and 15 of
    ``fracture``'s 158. In mixed precision what lies on the way is not in float32.
    """
    x = x @ _between(x.shape[-1], size[-1], x).T
    for axis in reversed(range(2, x.ndim - 1)):
        rows = _between(x.shape[axis], size[axis - 2], x) @ x.flatten(axis + 1)
        x = torch.unflatten(rows, -1, x.shape[axis + 1 :])
    return x


def _between(places: int, length: int, like: Tensor) -> Tensor:
    """Return the matrix ``(length, places)`` that interpolates along an axis: a hat over each place."""
    at = ((_places(length, like) + 0.5) * (places / length) - 0.5).clamp(0, places - 1)
    distance = (at[:, None] - _places(places, like)).abs()
    return (1 - distance).clamp(min=0).to(like.dtype)


def _places(count: int, like: Tensor) -> Tensor:
    """Return 0, 1, ... in float32 where ``like`` is; TorchScript would keep ``torch.arange`` where it was traced."""
    return like.new_ones(count, dtype=torch.float32).cumsum(0) - 1


def channel_mean(x: Tensor) -> Tensor:
    """Return the mean over the channels of ``(N, C, *S)``, ``(N, 1, *S)``."""
    return x if x.shape[1] == 1 else x.mean(dim=1, keepdim=True)


def squared_error(x: Tensor, other: Tensor) -> Tensor:
    """Return the squared difference of ``(N, C, *S)``, the mean over its channels: ``(N, 1, *S)``."""
    return channel_mean(torch.unflatten((in_a_row(x) - in_a_row(other)).square(), 1, x.shape[1:]))


def in_a_row(x: Tensor) -> Tensor:
    """Return the values of each item ``(N, C, *S)`` in a row ``(N, n)``, for sums value by value.

    Of a single channel OpenVINO keeps the layout that convolutions want, channels innermost, and computes a value at a
    time: 10 ms where two volumes of 128^3 are added up, 1 in a row.
    """
    return x.flatten(1)
