"""Convolutional autoencoders with an MLP bottleneck, after MedIAnomaly (Cai et al., Medical Image Analysis 2025)."""

from __future__ import annotations

from itertools import pairwise

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from medad_serve.errors import MedadError
from medad_serve.models.base import AnomalyModel, Batch, Shape, register
from medad_serve.spec import Frozen, InputSpec, PrepSpec, Window

STRIDE = 16
"""Four blocks of stride 2."""


class AutoencoderSettings(Frozen):
    """Widths of the network."""

    width: int = Field(16, ge=1)
    """Channels of the first block; the four blocks hold 1, 2, 4 and 4 times as many."""
    latent_dim: int = Field(16, ge=1)
    hidden_dim: int = Field(2048, ge=1)


def _down(channels_in: int, channels_out: int) -> nn.Sequential:
    # No bias where batch norm follows: it would be subtracted again.
    conv = nn.Conv2d(channels_in, channels_out, 4, stride=2, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels_out), nn.ReLU(inplace=True))


def _up(channels_in: int, channels_out: int) -> nn.Sequential:
    conv = nn.ConvTranspose2d(channels_in, channels_out, 4, stride=2, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels_out), nn.ReLU(inplace=True))


def _mlp(features_in: int, hidden: int, features_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(features_in, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, features_out),
    )


class Autoencoder(AnomalyModel):
    """Encoder, MLP bottleneck and mirrored decoder; scores by the mean squared error.

    ``shape`` is (C, H, W) with H and W divisible by 16.
    """

    outputs = ("score", "heatmap", "reconstruction")

    def __init__(self, shape: Shape, width: int, latent_dim: int, hidden_dim: int) -> None:
        super().__init__()
        channels, height, breadth = shape
        if height % STRIDE or breadth % STRIDE:
            raise MedadError(f"size {height}x{breadth} does not divide by {STRIDE}", "Choose e.g. prep.size=[64,64]")
        widths = (width, 2 * width, 4 * width, 4 * width)
        self.code_shape = (widths[-1], height // STRIDE, breadth // STRIDE)
        features = self.code_shape[0] * self.code_shape[1] * self.code_shape[2]
        self.encoder = nn.Sequential(*(_down(a, b) for a, b in pairwise((channels, *widths))))
        self.to_latent = _mlp(features, hidden_dim, latent_dim)
        self.from_latent = _mlp(latent_dim, hidden_dim, features)
        self.decoder = nn.Sequential(
            *(_up(a, b) for a, b in pairwise(widths[::-1])),
            nn.ConvTranspose2d(width, channels, 4, stride=2, padding=1, bias=False),
        )

    def encode(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to the latent ``(N, latent_dim)``."""
        latent: Tensor = self.to_latent(self.encoder(x).flatten(1))
        return latent

    def decode(self, latent: Tensor) -> Tensor:
        """Map ``(N, latent_dim)`` to an image ``(N, C, H, W)``."""
        image: Tensor = self.decoder(self.from_latent(latent).unflatten(1, self.code_shape))
        return image

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return ``score (N,)`` mean squared error, ``heatmap (N, 1, H, W)`` and ``reconstruction``."""
        reconstruction = self.decode(self.encode(x))
        error = (x - reconstruction).square().mean(dim=1, keepdim=True)
        return {"score": error.mean(dim=(1, 2, 3)), "heatmap": error, "reconstruction": reconstruction}

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Mean squared error."""
        return {"loss": F.mse_loss(self.decode(self.encode(batch.x)), batch.x)}


HEAD_CT_INPUT = InputSpec(modalities=("CT",), body_parts=("HEAD", "BRAIN", "SKULL", "HEADNECK"), min_size=32)
HEAD_CT_PREP = PrepSpec(window=Window(center=40, width=80), size=(64, 64))


@register("ae", settings=AutoencoderSettings, phantom="head-ct", prep=HEAD_CT_PREP, input=HEAD_CT_INPUT)
def ae(shape: Shape, settings: AutoencoderSettings) -> Autoencoder:
    """Convolutional autoencoder on brain-windowed head-CT slices."""
    return Autoencoder(shape, settings.width, settings.latent_dim, settings.hidden_dim)
