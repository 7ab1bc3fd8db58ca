"""DRAEM's own anomalies: regions of Perlin noise filled with a foreign texture (Zavrtanik et al., ICCV 2021).

The published texture comes from the pictures of DTD; here it is another image of the same batch, strongly altered.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from medad_serve.models.draem.draws import Draws
from medad_serve.models.draem.settings import FaultSettings

SCALES = 6
"""Noise has 2**0 to 2**5 cells along each axis, as published."""
LATTICE = 48
"""Gradients along each axis: 32 cells, turned by any angle, need 46."""
THRESHOLD = 0.5
"""Of the noise; what lies above it is the anomaly."""
FILL = 0.9
"""Of the noise's peak, where none of it reaches the threshold."""


class Regions(NamedTuple):
    """Noise and texture of ``N`` images."""

    angles: Tensor
    """``(N, LATTICE, LATTICE)`` radians, of the gradients."""
    cells: Tensor
    """``(N, 2)`` along rows and columns."""
    turn: Tensor
    """``(N,)`` radians."""
    donor: Tensor
    """``(N,)``, which image gives the texture."""
    alter: Tensor
    """``(N, 9)`` in [0, 1): how it is altered."""

    def of(self, chosen: Tensor, device: torch.device) -> Regions:
        """Return those of some images, on a device."""
        return Regions(*(part[chosen].to(device) for part in self))


def draw_regions(draws: Draws) -> Regions:
    """Draw noise and texture for every image."""
    donor = draws.others()
    return Regions(
        angles=draws.between(0, 2 * math.pi, LATTICE, LATTICE),
        cells=2 ** torch.stack((draws.whole(0, SCALES - 1), draws.whole(0, SCALES - 1)), dim=1),
        turn=draws.between(-math.pi / 2, math.pi / 2),
        donor=donor,
        alter=draws.uniform(9),
    )


def perlin_noise(regions: Regions, size: tuple[int, int]) -> Tensor:
    """Return Perlin noise ``(M, H, W)``, turned; about -1..1."""
    device = regions.angles.device
    row = ((torch.arange(size[0], device=device) + 0.5) / size[0] - 0.5)[:, None]
    column = (torch.arange(size[1], device=device) + 0.5) / size[1] - 0.5
    cosine, sine = (f(regions.turn)[:, None, None] for f in (torch.cos, torch.sin))
    cells = regions.cells[:, :, None, None].float()
    y = (row * cosine - column * sine) * cells[:, 0] + LATTICE / 2
    x = (row * sine + column * cosine) * cells[:, 1] + LATTICE / 2
    y0, x0 = y.floor().long(), x.floor().long()
    fy, fx = y - y0, x - x0
    gradients = torch.stack((regions.angles.sin(), regions.angles.cos()), dim=1).flatten(2)

    def corner(down: int, across: int) -> Tensor:
        place = ((y0 + down) * LATTICE + x0 + across).flatten(1)
        gy, gx = gradients.gather(2, place[:, None].expand(-1, 2, -1)).view(-1, 2, *size).unbind(1)
        return gy * (fy - down) + gx * (fx - across)

    ty, tx = _fade(fy), _fade(fx)
    upper = torch.lerp(corner(0, 0), corner(0, 1), tx)
    lower = torch.lerp(corner(1, 0), corner(1, 1), tx)
    return math.sqrt(2) * torch.lerp(upper, lower, ty)


def _fade(t: Tensor) -> Tensor:
    return t**3 * (t * (t * 6 - 15) + 10)


def _texture(x: Tensor, alter: Tensor, settings: FaultSettings) -> Tensor:
    """Alter images ``(M, C, H, W)`` beyond recognition: each of seven changes for half of them."""
    low, high = settings.values
    u = alter[:, :, None, None, None]
    x = (x - low) / (high - low)
    x = torch.where(u[:, 0] < 0.5, x.flip(2), x)
    x = torch.where(u[:, 1] < 0.5, x.flip(3), x)
    if x.shape[2] == x.shape[3]:
        x = torch.where(u[:, 2] < 0.5, x.transpose(2, 3), x)
    x = torch.where(u[:, 3] < 0.5, x.clamp(min=1e-4) ** (4 ** (2 * u[:, 4] - 1)), x)
    x = torch.where(u[:, 5] < 0.5, torch.where(x > u[:, 4], 1 - x, x), x)  # solarised
    levels = 2 + (4 * u[:, 4]).floor()
    x = torch.where(u[:, 6] < 0.5, (x * levels).round() / levels, x)
    x = torch.where(u[:, 7] < 0.5, x * (0.5 + u[:, 4]) + 0.6 * (u[:, 8] - 0.5), x)
    return x.clamp(0, 1) * (high - low) + low


def perlin(
    x: Tensor, donors: Tensor, regions: Regions, strength: Tensor, settings: FaultSettings
) -> tuple[Tensor, Tensor]:
    """Return images ``(M, C, H, W)`` with their anomalies, and the mask ``(M, 1, H, W)`` of what was changed.

    Within the mask, ``x`` becomes ``(1 - strength) * x + strength * texture``: ``strength (M,)`` is what DRAEM
    calls 1 - beta.
    """
    noise = perlin_noise(regions, (x.shape[2], x.shape[3]))
    peak = noise.flatten(1).amax(dim=1)
    threshold = torch.where(peak > THRESHOLD, THRESHOLD, FILL * peak)
    mask = (noise > threshold[:, None, None])[:, None].to(x.dtype)
    texture = _texture(donors, regions.alter, settings)
    return x + mask * strength[:, None, None, None] * (texture - x), mask
