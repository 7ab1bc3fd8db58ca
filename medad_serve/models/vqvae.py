"""VQ-VAE on images: encoder, codebook, decoder and a prior over its codes; three scores, z-normalised together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from medad_serve.errors import MedadError
from medad_serve.models.base import AnomalyModel, Batch, Log, Shape, register
from medad_serve.models.prior import CodePrior, fit_prior
from medad_serve.models.quantizer import Quantized, Quantizer, Update
from medad_serve.models.smoothing import squared_error
from medad_serve.models.zscore import ZScore, some_of, take_moments
from medad_serve.spec import Frozen, InputSpec, PrepSpec

Score = Literal["reconstruction", "alignment", "nll"]
SCORES: tuple[Score, ...] = ("reconstruction", "alignment", "nll")


class VqvaeSettings(Frozen):
    """Widths of the network (the source experiment's), its codebook, its prior and how it scores."""

    n_hiddens: int = Field(256, ge=2)
    """Channels at the resolution of the codes."""
    n_residual_hiddens: int = Field(64, ge=1)
    n_residual_layers: int = Field(4, ge=0)
    n_downsamplings: int = Field(2, ge=1, le=5)
    """Halvings between image and codes; 2 as in van den Oord et al.: a code stands for 4x4 pixels."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Of whole channels, within each residual block."""
    embedding_dim: int = Field(256, ge=1)
    n_embeddings: int = Field(128, ge=2)
    beta: float = Field(0.25, ge=0)
    """Weight of the commitment loss."""
    codebook: Update = "ema"
    codebook_decay: float = Field(0.99, gt=0, lt=1)
    """Of the running means."""
    revive_after: int = Field(10, ge=0)
    """Training batches after which an unused code is seeded anew; 0: never."""
    prior_layers: int = Field(8, ge=1)
    prior_width: int = Field(64, ge=1)
    prior_dropout: float = Field(0.1, ge=0, lt=1)
    prior_epochs: int = Field(100, ge=1)
    prior_patience: int = Field(5, ge=1)
    prior_passes: int = Field(1, ge=1)
    """Times the training images are read for codes: above 1 where train.augment varies them."""
    prior_learning_rate: float = Field(1e-3, gt=0)
    scores: Annotated[tuple[Score, ...], some_of(SCORES)] = SCORES
    """Whose z-scores make up the score and the heatmap."""
    score_share: float = Field(1.0, gt=0, le=1)
    """Share of the highest values of a map that its score averages: below 1 for lesions small beside the image."""


class _Residual(nn.Module):
    def __init__(self, channels: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, hidden, 3, padding=1, bias=False),
            nn.ReLU(),
            nn.Conv2d(hidden, channels, 1, bias=False),
            nn.Dropout2d(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.block(x)
        return out


def _residuals(settings: VqvaeSettings) -> list[nn.Module]:
    width, hidden = settings.n_hiddens, settings.n_residual_hiddens
    return [*(_Residual(width, hidden, settings.dropout) for _ in range(settings.n_residual_layers)), nn.ReLU()]


def _widths(channels: int, settings: VqvaeSettings) -> list[tuple[int, int]]:
    """Return (in, out) of each halving: half the width first, then all of it."""
    inner = [settings.n_hiddens // 2] + [settings.n_hiddens] * (settings.n_downsamplings - 1)
    inner = inner if settings.n_downsamplings > 1 else [settings.n_hiddens]
    return list(zip([channels, *inner[:-1]], inner, strict=True))


def _encoder(channels: int, settings: VqvaeSettings) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in _widths(channels, settings):
        layers += [nn.Conv2d(a, b, 4, stride=2, padding=1), nn.ReLU()]
    width = settings.n_hiddens
    layers += [nn.Conv2d(width, width, 3, padding=1), *_residuals(settings)]
    return nn.Sequential(*layers, nn.Conv2d(width, settings.embedding_dim, 1))


def _decoder(channels: int, settings: VqvaeSettings) -> nn.Sequential:
    width = settings.n_hiddens
    layers: list[nn.Module] = [nn.Conv2d(settings.embedding_dim, width, 3, padding=1), *_residuals(settings)]
    for a, b in reversed(_widths(channels, settings)):
        layers += [nn.ConvTranspose2d(b, a, 4, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Vqvae(AnomalyModel):
    """Images ``(N, C, H, W)``, H and W divisible by 2^n_downsamplings, to codes ``(N, h, w)`` and back.

    Three maps tell what is unusual: the squared reconstruction error; the alignment loss map (ALM), the mean
    squared difference between encoder output and code; and the negative log-likelihood of each code under the
    prior. The score is the mean of the z-scores of those chosen, by the mean and deviation that ``finish``
    found on held-out normals. Until then those are 0 and 1, and the likelihood, under a prior that knows
    nothing yet, counts only where it is the only one chosen.
    """

    weights: Tensor

    outputs = (
        "score",
        "heatmap",
        "reconstruction",
        "alignment",
        "codes",
        "score_reconstruction",
        "score_alignment",
        "score_nll",
    )
    deviations = ("score", "heatmap")

    def __init__(self, shape: Shape, settings: VqvaeSettings) -> None:
        super().__init__()
        channels, height, breadth = shape
        self.stride = 2**settings.n_downsamplings
        if height % self.stride or breadth % self.stride:
            raise MedadError(
                f"size {height}x{breadth} does not divide by {self.stride}", "Choose e.g. prep.size=[128,128]"
            )
        self.settings = settings
        self.encoder = _encoder(channels, settings)
        self.quantizer = Quantizer(
            settings.n_embeddings,
            settings.embedding_dim,
            commitment_cost=settings.beta,
            update=settings.codebook,
            decay=settings.codebook_decay,
            revive_after=settings.revive_after,
        )
        self.decoder = _decoder(channels, settings)
        # Trained by finish() alone, once the codes no longer change.
        self.prior = CodePrior(
            settings.n_embeddings,
            (height // self.stride, breadth // self.stride),
            width=settings.prior_width,
            layers=settings.prior_layers,
            dropout=settings.prior_dropout,
        ).requires_grad_(False)
        known = tuple(name for name in settings.scores if name != "nll")
        self.register_buffer("weights", _shares(known or settings.scores))
        self.score_scale = ZScore(len(SCORES))
        self.map_scale = ZScore(len(SCORES))

    def encode(self, x: Tensor) -> Quantized:
        """Quantise ``(N, C, H, W)`` to codes ``(N, h, w)``."""
        found: Quantized = self.quantizer(self.encoder(x))
        return found

    def decode(self, codes: Tensor) -> Tensor:
        """Map codes ``(N, h, w)`` to an image ``(N, C, H, W)``."""
        image: Tensor = self.decoder(self.quantizer.lookup(codes))
        return image

    def _scored(self, x: Tensor) -> tuple[Tensor, Tensor, Quantized, Tensor]:
        """Return scores ``(N, 3)``, maps ``(N, 3, H, W)``, both raw, what ``x`` became, and its reconstruction."""
        found = self.encode(x)
        reconstruction = self.decoder(found.quantized)
        error = squared_error(x, reconstruction)
        coarse = torch.stack((found.distances, self.prior.nll(found.codes)), dim=1)
        scores = torch.stack((self._pooled(error), self._pooled(coarse[:, 0]), self._pooled(coarse[:, 1])), dim=1)
        maps = torch.cat((error, F.interpolate(coarse, scale_factor=self.stride, mode="nearest")), dim=1)
        return scores, maps, found, reconstruction

    def _pooled(self, values: Tensor) -> Tensor:
        """Average the highest share of each map ``(N, *S)``."""
        flat = values.flatten(1)
        if self.settings.score_share < 1:
            flat = flat.topk(max(1, round(self.settings.score_share * int(flat.shape[1]))), dim=1).values
        return flat.mean(dim=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return every output; ``alignment`` is the ALM ``(N, 1, H, W)``, ``score_nll`` in nats a code."""
        scores, maps, found, reconstruction = self._scored(x)
        return {
            "score": (self.score_scale(scores) * self.weights).sum(dim=1),
            # Better than normal is not anomalous: the map ends at 0.
            "heatmap": (self.map_scale(maps) * self.weights[:, None, None]).sum(dim=1, keepdim=True).relu(),
            "reconstruction": reconstruction,
            "alignment": maps[:, 1:2],
            "codes": found.codes,
            **{f"score_{name}": scores[:, i] for i, name in enumerate(SCORES)},
        }

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Mean squared error and the quantiser's loss, with the state of the codebook."""
        found = self.encode(batch.x)
        recon_loss = F.mse_loss(self.decoder(found.quantized), batch.x)
        return found.terms(recon_loss)

    def ties(self, x: Tensor) -> dict[str, Tensor]:
        """Return how nearly each position of ``codes`` took another code."""
        with torch.no_grad():
            return {"codes": self.quantizer.ties(self.encoder(x))}

    def finish(self, train: Iterable[Tensor], held_out: Iterable[Tensor], log: Log) -> None:
        """Train the prior on the codes of normals, then find mean and deviation of each score and map."""
        fit_prior(
            self.prior,
            self._codes(x for _ in range(self.settings.prior_passes) for x in train),
            self._codes(held_out),
            epochs=self.settings.prior_epochs,
            learning_rate=self.settings.prior_learning_rate,
            patience=self.settings.prior_patience,
            log=log,
        )
        take_moments((self._scored(x)[:2] for x in held_out), self.score_scale, self.map_scale)
        self.weights.copy_(_shares(self.settings.scores))
        means = {f"{name}_mean": float(m) for name, m in zip(SCORES, self.score_scale.mean, strict=True)}
        log(means | {f"{name}_std": float(s) for name, s in zip(SCORES, self.score_scale.std, strict=True)})

    def _codes(self, images: Iterable[Tensor]) -> Tensor:
        """Return the codes ``(N, h, w)`` of all images on the CPU, in two bytes each."""
        with torch.no_grad():
            maps = [self.encode(x).codes.to("cpu", torch.int16) for x in images]
        if not maps:
            raise MedadError("no normal images are left to fit the prior and the scores", "Add healthy patients")
        return torch.cat(maps)


def _shares(chosen: Sequence[Score]) -> Tensor:
    """Return the weight ``(3,)`` of each score in the mean of those chosen."""
    return torch.tensor([(name in chosen) / len(chosen) for name in SCORES])


@register(
    "vqvae",
    settings=VqvaeSettings,
    phantom="oct",
    # A training image takes 0.25 s of one core at this size (its forward and backward pass), four times that at 256.
    prep=PrepSpec(size=(128, 128)),
    # OPT is ophthalmic tomography; its pixels lie micrometres apart in depth, some hundredths of a mm across
    input=InputSpec(modalities=("OPT",), plain_images=True, min_size=32, bits=(8, 16), spacing_mm=(0.001, 0.1)),
    train={"learning_rate": 1e-4, "patience": 10, "min_delta": 1e-4},  # the source's
    quick=(
        "prep.size=[64,64]",
        "settings.n_hiddens=64",
        "settings.n_residual_hiddens=32",
        "settings.n_residual_layers=2",
        "settings.embedding_dim=64",
        "settings.n_embeddings=64",
        "settings.prior_layers=4",
        "settings.prior_width=32",
        "settings.prior_epochs=20",
        "train.max_epochs=40",
        "train.batch_size=16",
        "train.learning_rate=1e-3",
        "train.patience=10",
    ),
    trial_size=(32, 32),
    trial_settings={
        "n_hiddens": 16,
        "n_residual_hiddens": 8,
        "n_residual_layers": 1,
        "embedding_dim": 8,
        "n_embeddings": 16,
        "prior_layers": 2,
        "prior_width": 8,
        "prior_epochs": 2,
    },
)
def vqvae(shape: Shape, settings: VqvaeSettings) -> Vqvae:
    """VQ-VAE on 8-bit images (retinal OCT), scored by reconstruction, alignment and latent likelihood."""
    return Vqvae(shape, settings)
