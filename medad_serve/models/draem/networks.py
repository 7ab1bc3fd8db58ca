"""The three sub-networks: what should be there, where it is not, and how bad that is.

Layers of the first two as published: Zavrtanik, Kristan and Skočaj, "DRAEM: a discriminatively trained
reconstruction embedding for surface anomaly detection" (ICCV 2021).
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

RECONSTRUCTIVE_LEVELS = (1, 2, 4, 8, 8)
"""Channels of each level in widths of the first; every level has half the resolution of the one before."""
DISCRIMINATIVE_LEVELS = (1, 2, 4, 8, 8, 8)
STRIDE = 2 ** (len(DISCRIMINATIVE_LEVELS) - 1)
"""By which height and width must divide, times ``patch``."""


def _layer(channels_in: int, channels_out: int, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False),  # the norm has one
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    ]


def _block(channels_in: int, channels_mid: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(*_layer(channels_in, channels_mid), *_layer(channels_mid, channels_out))


def _enlarged(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)


class Reconstructive(nn.Module):
    """Autoencoder ``(N, C, H, W)`` to the same shape, without skips: what it cannot encode, it replaces."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        widths = [width * level for level in RECONSTRUCTIVE_LEVELS]
        self.down = nn.ModuleList(_block(a, b, b) for a, b in pairwise((channels * patch**2, *widths)))
        upward = list(pairwise((*widths[-2::-1], width)))
        self.enlarge = nn.ModuleList(nn.Sequential(*_layer(a, a)) for a, _ in upward)
        self.up = nn.ModuleList(_block(a, a, b) for a, b in upward)
        self.out = nn.Conv2d(width, channels * patch**2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the image as it would be without fault."""
        x = F.pixel_unshuffle(x, self.patch)
        for level, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if level else x)
        for enlarge, block in zip(self.enlarge, self.up, strict=True):
            x = block(enlarge(_enlarged(x)))
        return F.pixel_shuffle(self.out(x), self.patch)


class Discriminative(nn.Module):
    """U-Net from image and reconstruction ``(N, 2C, H, W)`` to logits ``(N, 2, H, W)`` of normal and faulty."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        widths = [width * level for level in DISCRIMINATIVE_LEVELS]
        self.down = nn.ModuleList(_block(a, b, b) for a, b in pairwise((channels * patch**2, *widths)))
        skips = widths[-2::-1]
        upward = list(pairwise((widths[-1], *skips[1:], width)))
        self.enlarge = nn.ModuleList(nn.Sequential(*_layer(a, b)) for a, b in upward)
        self.up = nn.ModuleList(_block(b + skip, b, b) for (_, b), skip in zip(upward, skips, strict=True))
        self.out = nn.Conv2d(width, 2 * patch**2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of every pixel."""
        x = F.pixel_unshuffle(x, self.patch)
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        for enlarge, block, skip in zip(self.enlarge, self.up, skips[-2::-1], strict=True):
            x = block(torch.cat((enlarge(_enlarged(x)), skip), dim=1))
        return F.pixel_shuffle(self.out(x), self.patch)


class SeverityHead(nn.Module):
    """Maps ``(N, C, H, W)`` to a severity in 0..1 ``(N,)``: three convolutions, global mean, three linear layers.

    The convolutions take every second pixel: at full resolution they would cost more than both other networks.
    """

    def __init__(self, channels: int, widths: tuple[int, int, int], hidden: tuple[int, int], dropout: float) -> None:
        super().__init__()
        convolutions = [_layer(a, b, stride=2) for a, b in pairwise((channels, *widths))]
        self.features = nn.Sequential(*(module for layer in convolutions for module in layer))
        layers: list[nn.Module] = []
        for a, b in pairwise((widths[-1], *hidden)):
            layers += [nn.Linear(a, b), nn.ReLU(), nn.Dropout(dropout)]
        self.regressor = nn.Sequential(*layers, nn.Linear(hidden[-1], 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the severity as a share of the highest."""
        severity: Tensor = self.regressor(self.features(x).mean(dim=(2, 3)))[:, 0]
        return severity.sigmoid()
