"""Cracks: thin lines that wander in from the border or lie anywhere, darker or brighter than what they cross."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from medad_serve.models.draem.draws import Draws
from medad_serve.models.draem.settings import FaultSettings

SEGMENTS = 8
"""Straight pieces of a crack."""
MOST = 3
"""Cracks of an image."""
FROM_BORDER = 0.6
"""Share of cracks that start at the border."""
BEND = 0.35
"""Standard deviation of the turn from one piece to the next, in radians, of the most crooked."""
SEEN = 0.25
"""Share of a pixel that a crack covers for the mask to have it: the pixel where one starts always has more."""


class Cracks(NamedTuple):
    """Where the cracks of ``N`` images run; ``MOST`` for each, of which ``made`` are made."""

    start: Tensor
    """``(N, MOST, 2)``: row and column of the first point, as shares of height and width."""
    headings: Tensor
    """``(N, MOST, SEGMENTS)`` radians, from columns towards rows."""
    length: Tensor
    """``(N, MOST)``, as a share of the longer side."""
    width: Tensor
    """``(N, MOST)`` pixels."""
    made: Tensor
    """``(N,)``."""
    sign: Tensor
    """``(N,)``: -1 darkens, 1 brightens."""

    def of(self, chosen: Tensor, device: torch.device) -> Cracks:
        """Return those of some images, on a device."""
        return Cracks(*(part[chosen].to(device) for part in self))


def draw_cracks(settings: FaultSettings, draws: Draws) -> Cracks:
    """Draw cracks for every image: from the top or bottom border inwards, or from anywhere in any direction."""
    count = draws.count
    start = draws.uniform(MOST * 2).view(count, MOST, 2)
    heading = draws.between(-math.pi, math.pi, MOST)
    at_border, below = draws.uniform(MOST) < FROM_BORDER, draws.uniform(MOST) < 0.5
    inward = torch.where(below, -1.0, 1.0) * (math.pi / 2 + heading / 6)
    start[..., 0] = torch.where(at_border, below.float(), start[..., 0])
    bends = _normal(draws, MOST * SEGMENTS).view(count, MOST, SEGMENTS) * BEND * draws.uniform(MOST)[..., None]
    (thin, thick), (short, long) = settings.crack_width_range, settings.crack_length_range
    return Cracks(
        start=start,
        headings=torch.where(at_border, inward, heading)[..., None] + bends.cumsum(dim=2),
        length=short * (long / short) ** draws.uniform(MOST),
        width=thin * (thick / thin) ** draws.uniform(MOST),
        made=draws.whole(1, MOST),
        sign=1 - 2 * draws.chance(settings.darker).float(),
    )


def _normal(draws: Draws, count: int) -> Tensor:
    """Draw standard normal numbers ``(N, count)``."""
    return torch.erfinv((2 * draws.uniform(count) - 1).clamp(-0.9999, 0.9999)) * math.sqrt(2)


def _distance(cracks: Cracks, index: int, size: tuple[int, int]) -> Tensor:
    """Return how far each pixel ``(M, H, W)`` lies from the ``index``-th crack of its image, in pixels."""
    height, width = size
    device = cracks.start.device
    y = (torch.arange(height, device=device) + 0.5)[:, None]
    x = torch.arange(width, device=device) + 0.5
    heading = cracks.headings[:, index]
    piece = cracks.length[:, index, None] * max(size) / SEGMENTS
    steps = torch.stack((heading.sin(), heading.cos()), dim=2) * piece[..., None]
    first = cracks.start[:, index] * torch.tensor([height, width], device=device)
    points = torch.cat((first[:, None], first[:, None] + steps.cumsum(dim=1)), dim=1)[..., None, None]
    nearest = torch.full((len(first), height, width), torch.inf, device=device)
    for begin, end in pairwise(points.unbind(1)):
        (y0, x0), (y1, x1) = begin.unbind(1), end.unbind(1)
        down, across = y1 - y0, x1 - x0
        share = ((y - y0) * down + (x - x0) * across) / (down**2 + across**2).clamp(min=1e-6)
        share = share.clamp(0, 1)
        nearest = torch.minimum(nearest, torch.hypot(y - y0 - share * down, x - x0 - share * across))
    return nearest


def crack(x: Tensor, cracks: Cracks, strength: Tensor, settings: FaultSettings) -> tuple[Tensor, Tensor]:
    """Return images ``(M, C, H, W)`` with their cracks, and the mask ``(M, 1, H, W)`` of what was changed.

    A crack takes or adds ``strength (M,) * crack_contrast`` of the value range; a pixel that it covers in part
    changes as much less.
    """
    size, (low, high) = (x.shape[2], x.shape[3]), settings.values
    covered = torch.zeros_like(x[:, 0])
    for index in range(MOST):
        half = cracks.width[:, index, None, None] / 2
        alpha = (half + 0.5 - _distance(cracks, index, size)).clamp(0, 1)
        covered = torch.maximum(covered, alpha * (cracks.made > index)[:, None, None])
    change = cracks.sign * strength * settings.crack_contrast * (high - low)
    mask = (covered > SEEN)[:, None].to(x.dtype)
    return (x + mask * covered[:, None] * change[:, None, None, None]).clamp(low, high), mask
