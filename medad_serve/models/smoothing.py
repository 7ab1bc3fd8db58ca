"""Means and maxima over boxes and channels, and maps made larger: what stands between a network and its scores.

Means over a box, and values that repeat, are products with a matrix along each axis in turn. Runtimes multiply
matrices at the speed of the processor; to pool and to resize a volume of one channel is what they do worst
(onnxruntime at 128x128x128, two cores: 64 ms for 11, and 25 for 0.9).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from medad_serve.models.precision import full_precision

_MAXIMA = {2: F.max_pool2d, 3: F.max_pool3d}


def box_mean(x: Tensor, side: int, *, padded: bool = True) -> Tensor:
    """Return the mean over a box of odd ``side`` around each place of ``(N, C, *S)``, in float32.

    Beyond the border lies 0, which counts where ``padded``.
    """
    for axis in range(2, x.ndim) if side > 1 else ():
        place = torch.arange(x.shape[axis], device=x.device)
        near = ((place[:, None] - place).abs() <= side // 2).float()
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
    """Return ``(N, C, *S)`` with each value ``times`` times along each axis, as the nearest one of a larger map."""
    for axis in range(2, x.ndim) if times > 1 else ():
        size = x.shape[axis]
        rows, columns = torch.arange(size * times, device=x.device), torch.arange(size, device=x.device)
        x = _along(x, axis, (rows[:, None] // times == columns).float())
    return x


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


def _along(x: Tensor, axis: int, matrix: Tensor) -> Tensor:
    """Multiply ``matrix (m, n)`` by the n values of an axis; half the digits would make scores equal that are not."""
    with full_precision(x):
        x = x.float()
        if axis == x.ndim - 1:
            return x @ matrix.T
        return torch.unflatten(matrix @ x.flatten(axis + 1), -1, x.shape[axis + 1 :])
