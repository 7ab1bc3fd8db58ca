"""Denoising autoencoder: a U-Net that takes coarse noise off normals, and lesions with it.

After Kascenas, Pugeault and O'Neil, "Denoising autoencoders for unsupervised anomaly detection in brain MRI"
(MIDL 2022): noise of the size of lesions, not of pixels, is what a network learns to replace by normal tissue.
"""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from medad_serve.errors import MedadError
from medad_serve.models.autoencoders import HEAD_CT_INPUT
from medad_serve.models.base import AnomalyModel, Batch, Shape, register
from medad_serve.models.smoothing import box_max, box_mean, channel_mean
from medad_serve.spec import Foreground, Frozen, PrepSpec, Window

VALIDATION_SEED = 0
REACH = 5
"""Side in pixels within which a mirrored error counts: no head is quite symmetric or straight."""


class NoiseSettings(Frozen):
    """What training adds to the foreground; the source's values unless set."""

    std: tuple[float, float] = (0.2, 0.2)
    """Smallest and largest standard deviation of an item's noise before it is enlarged."""
    cells: tuple[int, ...] = (16,)
    """Side of the grid on which it is drawn, one of these for each batch."""

    @model_validator(mode="after")
    def _is_noise(self) -> Self:
        if not 0 < self.std[0] <= self.std[1]:
            raise ValueError("std must be two rising numbers above 0")
        if not self.cells or min(self.cells) < 1:
            raise ValueError("cells must be whole numbers from 1")
        return self


class DenoisingSettings(Frozen):
    """The network, the noise and the score; sizes in pixels are those of the prepared image."""

    widths: tuple[int, ...] = Field((16, 32, 64, 64), min_length=1)
    """Channels of each level, every one at half the resolution of the one before; multiples of 4."""
    patch: int = Field(2, ge=1)
    """Side of the squares of pixels that the first level reads as one: 2 trains 4 times as fast as 1."""
    noise: NoiseSettings = NoiseSettings()
    foreground: float = 0.05
    """Prepared values above it are foreground, and what they enclose."""
    margin: int = Field(12, ge=0)
    """Taken off the foreground's rim, where no reconstruction is sharp enough (the skull)."""
    ceiling: float | None = 0.98
    """Prepared values from here on are left out: clipped by the window (bone), they hold no brightness to compare.
    None compares every value."""
    smoothing: int = Field(7, ge=1)
    """Side of the square over which errors are averaged; odd."""
    residual: Literal["positive", "absolute"] = "positive"
    """``positive`` counts what is brighter than expected alone: fresh blood on CT."""
    symmetry: float = Field(0.5, ge=0)
    """Share of the error at the mirrored place that is taken off: normal variants come in pairs. 0 for images
    without a left and a right."""
    top: float = Field(0.003, gt=0, le=1)
    """Share of the image whose largest errors make the score."""

    @model_validator(mode="after")
    def _is_centred(self) -> Self:
        if self.smoothing % 2 == 0:
            raise ValueError("smoothing must be odd")
        if any(width % 4 for width in self.widths):
            raise ValueError("widths must be multiples of 4")
        return self


def _block(channels_in: int, channels_out: int) -> nn.Sequential:
    # Group norm: a scan's reconstruction then depends on no other, and small batches train as large ones.
    groups = min(8, channels_out // 4)
    layers: list[nn.Module] = []
    for a in (channels_in, channels_out):
        layers += [nn.Conv2d(a, channels_out, 3, padding=1, bias=False), nn.GroupNorm(groups, channels_out), nn.SiLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Maps ``(N, C, H, W)`` to the same shape; H and W divide by ``patch * 2 ** (levels - 1)``."""

    def __init__(self, channels: int, widths: tuple[int, ...], patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.down = nn.ModuleList(_block(a, b) for a, b in pairwise((channels * patch**2, *widths)))
        self.up = nn.ModuleList(_block(a + b, b) for a, b in pairwise(widths[::-1]))
        self.out = nn.Conv2d(widths[0], channels * patch**2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the image that it would be without noise."""
        hidden = F.pixel_unshuffle(x, self.patch)
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            hidden = block(F.avg_pool2d(hidden, 2) if level else hidden)
            skips.append(hidden)
        for block, skip in zip(self.up, skips[-2::-1], strict=True):
            hidden = block(torch.cat((F.interpolate(hidden, scale_factor=2.0, mode="nearest"), skip), dim=1))
        return F.pixel_shuffle(self.out(hidden), self.patch)


def coarse_noise(x: Tensor, settings: NoiseSettings, generator: torch.Generator | None = None) -> Tensor:
    """Draw noise like ``x (N, C, H, W)``: normal on a coarse grid, enlarged bilinearly and rolled at random."""
    count, channels, height, width = x.shape

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=x.device)

    cells = settings.cells[int(uniform(1) * len(settings.cells))]
    low, high = settings.std
    std = low + (high - low) * uniform(count, 1, 1, 1)
    grid = torch.randn((count, channels, cells, cells), generator=generator, device=x.device) * std
    noise = F.interpolate(grid, size=(height, width), mode="bilinear", align_corners=True)
    down, across = (uniform(count) * height).long(), (uniform(count) * width).long()
    rows = (torch.arange(height, device=x.device) + down[:, None]) % height
    columns = (torch.arange(width, device=x.device) + across[:, None]) % width
    item = torch.arange(count, device=x.device)[:, None, None]
    return noise.permute(0, 2, 3, 1)[item, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def enclosed(mask: Tensor) -> Tensor:
    """Fill ``mask (N, 1, H, W)`` of 0 and 1 wherever it stands on all four sides (ventricles, air cells)."""
    before, above = mask.cumsum(dim=3), mask.cumsum(dim=2)
    after, below = before[..., -1:] - before + mask, above[..., -1:, :] - above + mask
    return (torch.minimum(torch.minimum(before, above), torch.minimum(after, below)) > 0).to(mask.dtype)


def eroded(mask: Tensor, margin: int) -> Tensor:
    """Take ``margin`` pixels off the rim of ``mask (N, 1, H, W)``; beyond the image lies background."""
    outside = F.pad(1 - mask, [margin] * 4, value=1.0)
    # Along one axis, then the other: the same square for a twelfth of the work.
    rows = F.max_pool2d(outside, (2 * margin + 1, 1), stride=1)
    return 1 - F.max_pool2d(rows, (1, 2 * margin + 1), stride=1)


class DenoisingAutoencoder(AnomalyModel):
    """U-Net trained to take coarse noise off; scores by the largest smoothed errors within the foreground.

    ``shape`` is (C, H, W) with H and W divisible by ``patch * 2 ** (levels - 1)``.
    """

    outputs: ClassVar[tuple[str, ...]] = ("score", "heatmap", "reconstruction")

    def __init__(self, shape: Shape, settings: DenoisingSettings) -> None:
        super().__init__()
        channels, height, width = shape
        stride = settings.patch * 2 ** (len(settings.widths) - 1)
        if height % stride or width % stride:
            raise MedadError(
                f"size {height}x{width} does not divide by {stride}", "Choose e.g. prep.size=[128,128] or fewer widths"
            )
        if 4 * settings.margin >= min(height, width):
            raise MedadError(
                f"a margin of {settings.margin} leaves too little of {height}x{width}", "Lower settings.margin"
            )
        self.settings = settings
        self.count = max(1, round(settings.top * height * width))
        self.network = UNet(channels, settings.widths, settings.patch)

    def foreground(self, x: Tensor) -> Tensor:
        """Return the mask ``(N, 1, H, W)`` of the foreground and what it encloses."""
        return enclosed((x.amax(dim=1, keepdim=True) > self.settings.foreground).to(x.dtype))

    def errors(self, x: Tensor, reconstruction: Tensor) -> Tensor:
        """Return the smoothed errors ``(N, 1, H, W)`` within the foreground, less those that both sides share."""
        mask, side = eroded(self.foreground(x), self.settings.margin), self.settings.smoothing
        # Signed while it is averaged: noise then cancels, a lesion does not.
        difference = (x - reconstruction) * mask
        if self.settings.ceiling is not None:
            difference = difference * (x < self.settings.ceiling)
        smooth = box_mean(difference, side)
        error = channel_mean(F.relu(smooth) if self.settings.residual == "positive" else smooth.abs())
        if self.settings.symmetry:
            mirrored = box_max(error, REACH).flip(3)
            error = F.relu(error - self.settings.symmetry * mirrored)
        return error * mask

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return ``score (N,)``, the errors as ``heatmap (N, 1, H, W)`` and ``reconstruction``."""
        reconstruction = self.network(x)
        error = self.errors(x, reconstruction)
        largest = error.flatten(1).topk(self.count, dim=1).values
        return {"score": largest.mean(dim=1), "heatmap": error, "reconstruction": reconstruction}

    def corrupt(self, x: Tensor) -> Tensor:
        """Add noise to the foreground; in evaluation the same noise each time, so that losses compare."""
        generator = None if self.training else torch.Generator(x.device).manual_seed(VALIDATION_SEED)
        visible = (x.amax(dim=1, keepdim=True) > self.settings.foreground).to(x.dtype)
        return x + coarse_noise(x, self.settings.noise, generator) * visible

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Mean squared difference between the image and what the network makes of its noisy copy."""
        recon_loss = F.mse_loss(self.network(self.corrupt(batch.x)), batch.x)
        return {"loss": recon_loss, "recon_loss": recon_loss.detach()}


HEAD_CT_PREP = PrepSpec(window=Window(center=40, width=80), foreground=Foreground(), size=(128, 128))


@register(
    "dae",
    settings=DenoisingSettings,
    phantom="head-ct",
    prep=HEAD_CT_PREP,
    input=HEAD_CT_INPUT,
    train={
        "max_epochs": 120,
        "validate_every": 10,
        "patience": 12,
        "batch_size": 8,
        "scheduler": "cosine",
        "gradient_clip": 1.0,
    },
    quick=(
        "train.max_epochs=5",
        "train.batch_size=8",
        "train.scheduler=cosine",
    ),
    trial_size=(64, 64),
    trial_settings={"widths": (8, 16), "margin": 3},
)
def dae(shape: Shape, settings: DenoisingSettings) -> DenoisingAutoencoder:
    """Denoising U-Net, scored by the largest smoothed errors in the foreground (Kascenas et al.)."""
    return DenoisingAutoencoder(shape, settings)
