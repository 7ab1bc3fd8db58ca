"""Sliding means and maxima over a box, one axis at a time: k d values a place for side k in d dimensions, not k^d."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

_MEANS = {2: F.avg_pool2d, 3: F.avg_pool3d}
_MAXIMA = {2: F.max_pool2d, 3: F.max_pool3d}


def box_mean(x: Tensor, side: int, *, padded: bool = True) -> Tensor:
    """Return the mean over a box of odd ``side`` around each place of ``(N, C, *S)``.

    Beyond the border lies 0, which counts where ``padded``.
    """
    pool = _MEANS[x.ndim - 2]
    for kernel in _along_each_axis(x, side):
        padding = [length // 2 for length in kernel]
        x = pool(x, kernel, stride=1, padding=padding, count_include_pad=padded)
    return x


def box_max(x: Tensor, side: int) -> Tensor:
    """Return the maximum over a box of odd ``side`` around each place of ``(N, C, *S)``."""
    pool = _MAXIMA[x.ndim - 2]
    for kernel in _along_each_axis(x, side):
        x = pool(x, kernel, stride=1, padding=[length // 2 for length in kernel])
    return x


def _along_each_axis(x: Tensor, side: int) -> list[list[int]]:
    axes = range(x.ndim - 2)
    return [[side if axis == along else 1 for axis in axes] for along in axes]
