"""Means and maxima over boxes and channels, and maps made larger: what stands between a network and its scores.

A sliding mean is a product with a band matrix along each axis in turn, and a value that repeats one with ones below
each other. Runtimes multiply matrices at the speed of the processor; pooling and resizing a volume of one channel
is what they do worst (onnxruntime at 128x128x128, two cores: 64 ms for 11, and 25 for 0.9).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_MAXIMA = {2: F.max_pool2d, 3: F.max_pool3d}


def box_mean(x: Tensor, side: int, *, padded: bool = True) -> Tensor:
    """Return the mean over a box of odd ``side`` around each place of ``(N, C, *S)``.

    Beyond the border lies 0, which counts where ``padded``.
    """
    if side == 1:
        return x
    for axis in range(2, x.ndim):
        place = torch.arange(x.shape[axis], device=x.device)
        near = ((place[:, None] - place).abs() <= side // 2).to(x.dtype)
        x = _along(x, axis, near / (side if padded else near.sum(dim=1, keepdim=True)))
    return x


def box_max(x: Tensor, side: int) -> Tensor:
    """Return the maximum over a box of odd ``side`` around each place of ``(N, C, *S)``."""
    pool, axes = _MAXIMA[x.ndim - 2], range(x.ndim - 2)
    for along in axes:
        kernel = [side if axis == along else 1 for axis in axes]
        x = pool(x, kernel, stride=1, padding=[length // 2 for length in kernel])
    return x


def repeated(x: Tensor, times: int) -> Tensor:
    """Return ``(N, C, *S)`` with each value ``times`` times along each axis: the nearest one of a larger map."""
    if times == 1:
        return x
    for axis in range(2, x.ndim):
        size = x.shape[axis]
        rows, columns = torch.arange(size * times, device=x.device), torch.arange(size, device=x.device)
        x = _along(x, axis, (rows[:, None] // times == columns).to(x.dtype))
    return x


def channel_mean(x: Tensor) -> Tensor:
    """Return the mean over the channels of ``(N, C, *S)``, ``(N, 1, *S)``."""
    return x if x.shape[1] == 1 else x.mean(dim=1, keepdim=True)


def squared_error(x: Tensor, other: Tensor) -> Tensor:
    """Return the squared difference of ``(N, C, *S)``, the mean over its channels: ``(N, 1, *S)``."""
    return channel_mean(torch.unflatten((flat(x) - flat(other)).square(), 1, x.shape[1:]))


def flat(x: Tensor) -> Tensor:
    """Return the values of each item ``(N, C, *S)`` in a row.

    Where there is one channel, OpenVINO lays it innermost and computes on a value at a time: 10 ms for 2 of 128^3.
    """
    return x.flatten(1)


def _along(x: Tensor, axis: int, matrix: Tensor) -> Tensor:
    """Multiply ``matrix (m, n)`` by the n values of an axis."""
    if axis == x.ndim - 1:
        return x @ matrix.T
    rest = x.shape[axis + 1 :]
    return torch.unflatten(matrix @ x.flatten(axis + 1), -1, rest)
