"""Convolutional autoencoders with an MLP bottleneck, after MedIAnomaly (Cai et al., Medical Image Analysis 2025)."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from medad_serve.errors import MedadError
from medad_serve.models.base import AnomalyModel, Batch, Shape, register
from medad_serve.models.smoothing import channel_mean, squared_error
from medad_serve.spec import Frozen, InputSpec, PrepSpec, Window

STRIDE = 16
"""Four blocks of stride 2."""


class AutoencoderSettings(Frozen):
    """Widths of the network."""

    width: int = Field(16, ge=1)
    """Channels of the first block; the four blocks hold 1, 2, 4 and 4 times as many."""
    latent_dim: int = Field(16, ge=1)
    hidden_dim: int = Field(2048, ge=1)


class VariationalSettings(AutoencoderSettings):
    """Widths, and how strongly the latent is drawn to a standard normal."""

    kl_weight: float = Field(2e-4, ge=0)
    """Beside a reconstruction loss averaged over pixels and a divergence averaged over latent dimensions.

    MedIAnomaly takes 0.005, with which the latent falls to the prior where little is left to reconstruct (the phantoms'
    0.0003 beside 0.015 of CQ500): AUROC 0.61 there for 0.94, and 0.80 for 0.81 on CQ500.
    """


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

    outputs: ClassVar[tuple[str, ...]] = ("score", "heatmap", "reconstruction")
    maps: ClassVar[int] = 1
    """Images that the decoder returns, each of C channels."""
    codes: ClassVar[int] = 1
    """Vectors of ``latent_dim`` that the encoder returns."""

    def __init__(self, shape: Shape, width: int, latent_dim: int, hidden_dim: int) -> None:
        super().__init__()
        channels, height, breadth = shape
        if height % STRIDE or breadth % STRIDE:
            raise MedadError(f"size {height}x{breadth} does not divide by {STRIDE}", "Choose e.g. prep.size=[64,64]")
        widths = (width, 2 * width, 4 * width, 4 * width)
        self.code_shape = (widths[-1], height // STRIDE, breadth // STRIDE)
        features = self.code_shape[0] * self.code_shape[1] * self.code_shape[2]
        self.encoder = nn.Sequential(*(_down(a, b) for a, b in pairwise((channels, *widths))))
        self.to_latent = _mlp(features, hidden_dim, self.codes * latent_dim)
        self.from_latent = _mlp(latent_dim, hidden_dim, features)
        self.decoder = nn.Sequential(
            *(_up(a, b) for a, b in pairwise(widths[::-1])),
            nn.ConvTranspose2d(width, self.maps * channels, 4, stride=2, padding=1, bias=False),
        )

    def encode(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to the latent ``(N, codes * latent_dim)``."""
        latent: Tensor = self.to_latent(self.encoder(x).flatten(1))
        return latent

    def decode(self, latent: Tensor) -> Tensor:
        """Map ``(N, latent_dim)`` to ``(N, maps * C, H, W)``."""
        image: Tensor = self.decoder(self.from_latent(latent).unflatten(1, self.code_shape))
        return image

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return ``score (N,)`` mean squared error, ``heatmap (N, 1, H, W)`` and ``reconstruction``."""
        return _scored(x, self.decode(self.encode(x)))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Mean squared error."""
        recon_loss = F.mse_loss(self.decode(self.encode(batch.x)), batch.x)
        return {"loss": recon_loss, "recon_loss": recon_loss.detach()}


def _scored(x: Tensor, reconstruction: Tensor) -> dict[str, Tensor]:
    error = squared_error(x, reconstruction)
    return {"score": error.mean(dim=(1, 2, 3)), "heatmap": error, "reconstruction": reconstruction}


class UncertaintyAutoencoder(Autoencoder):
    """Autoencoder that also predicts how far each pixel will be off (AE-U; Mao et al., MICCAI 2020).

    Its loss is the Gaussian negative log-likelihood, doubled and without its constant; its score counts an error
    less where the model expected one.
    """

    outputs: ClassVar[tuple[str, ...]] = ("score", "heatmap", "reconstruction", "log_variance")
    maps: ClassVar[int] = 2

    def reconstruct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the reconstruction and its log-variance, each ``(N, C, H, W)``."""
        reconstruction, log_variance = self.decode(self.encode(x)).chunk(2, dim=1)
        return reconstruction, log_variance

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the weighted error as ``score (N,)`` and ``heatmap (N, 1, H, W)``, and both images."""
        reconstruction, log_variance = self.reconstruct(x)
        weighted = channel_mean((x - reconstruction).square() * torch.exp(-log_variance))
        return {
            "score": weighted.mean(dim=(1, 2, 3)),
            "heatmap": weighted,
            "reconstruction": reconstruction,
            "log_variance": log_variance,
        }

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Mean of ``exp(-log_variance) * error + log_variance``."""
        reconstruction, log_variance = self.reconstruct(batch.x)
        error = (batch.x - reconstruction).square()
        return {
            "loss": (torch.exp(-log_variance) * error + log_variance).mean(),
            "recon_loss": error.mean().detach(),
            "log_variance": log_variance.mean().detach(),
        }


class VariationalAutoencoder(Autoencoder):
    """Autoencoder whose latent is a normal distribution (Kingma and Welling, ICLR 2014).

    Training draws from it; ``forward`` takes its mean, so that scores and exports are deterministic.
    """

    codes: ClassVar[int] = 2

    def __init__(self, shape: Shape, width: int, latent_dim: int, hidden_dim: int, kl_weight: float) -> None:
        super().__init__(shape, width, latent_dim, hidden_dim)
        self.kl_weight = kl_weight

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of the latent, each ``(N, latent_dim)``."""
        mean, log_variance = self.encode(x).chunk(2, dim=1)
        return mean, log_variance

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return ``score (N,)`` mean squared error, ``heatmap (N, 1, H, W)`` and ``reconstruction`` of the mean."""
        return _scored(x, self.decode(self.posterior(x)[0]))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Mean squared error and weighted divergence from a standard normal, which is averaged over dimensions."""
        mean, log_variance = self.posterior(batch.x)
        # Drawn in training alone: validation then compares epochs, not draws.
        latent = mean + torch.exp(log_variance / 2) * torch.randn_like(mean) if self.training else mean
        recon_loss = F.mse_loss(self.decode(latent), batch.x)
        kl_loss = (mean.square() + log_variance.exp() - 1 - log_variance).mean() / 2
        return {
            "loss": recon_loss + self.kl_weight * kl_loss,
            "recon_loss": recon_loss.detach(),
            "kl_loss": kl_loss.detach(),
        }


HEAD_CT_INPUT = InputSpec(
    modalities=("CT",),
    body_parts=("HEAD", "BRAIN", "SKULL", "HEADNECK"),
    min_size=32,
    bits=(10, 32),  # CT stores 12 to 16 bits; 8 are a picture of it, without HU
    spacing_mm=(0.15, 4.0),  # from the smallest field of view to a head on 64 pixels
)
HEAD_CT_PREP = PrepSpec(window=Window(center=40, width=80), size=(64, 64))


@register("ae", settings=AutoencoderSettings, phantom="head-ct", prep=HEAD_CT_PREP, input=HEAD_CT_INPUT)
def ae(shape: Shape, settings: AutoencoderSettings) -> Autoencoder:
    """Convolutional autoencoder on brain-windowed head-CT slices."""
    return Autoencoder(shape, settings.width, settings.latent_dim, settings.hidden_dim)


@register("aeu", settings=AutoencoderSettings, phantom="head-ct", prep=HEAD_CT_PREP, input=HEAD_CT_INPUT)
def aeu(shape: Shape, settings: AutoencoderSettings) -> UncertaintyAutoencoder:
    """Autoencoder that weighs each error by the uncertainty it predicts (AE-U)."""
    return UncertaintyAutoencoder(shape, settings.width, settings.latent_dim, settings.hidden_dim)


@register("vae", settings=VariationalSettings, phantom="head-ct", prep=HEAD_CT_PREP, input=HEAD_CT_INPUT)
def vae(shape: Shape, settings: VariationalSettings) -> VariationalAutoencoder:
    """Variational autoencoder, scored by the reconstruction of its mean."""
    return VariationalAutoencoder(shape, settings.width, settings.latent_dim, settings.hidden_dim, settings.kl_weight)
