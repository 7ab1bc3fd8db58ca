"""VQ-VAE on volumes of one vertebra each: encoder, codebook, decoder in 3D."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from itertools import pairwise
from math import gcd, prod
from typing import Annotated, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from medad_serve.errors import MedadError
from medad_serve.models.base import AnomalyModel, Batch, Log, Shape, register
from medad_serve.models.quantizer import Quantized, Quantizer, Update
from medad_serve.models.smoothing import box_mean, in_a_row, repeated, squared_error
from medad_serve.models.zscore import ZScore, some_of, take_moments
from medad_serve.spec import Frozen, InputSpec, PrepSpec, Regions, Window

Score = Literal["reconstruction", "alignment"]
SCORES: tuple[Score, ...] = ("reconstruction", "alignment")
GROUPS = 8
"""Of group norm: a batch of two 128^3 volumes has no useful batch statistics."""


class Vqvae3dSettings(Frozen):
    """Codebook and dropout are the source experiment's; the widths are ours, for it states none."""

    latent_dim: int = Field(256, ge=1)
    """Channels of a code's vector."""
    num_embeddings: int = Field(512, ge=2)
    commitment_cost: float = Field(0.25, ge=0)
    dropout: float = Field(0.1, ge=0, lt=1)
    """Of whole channels, within each residual block."""
    hidden: tuple[int, ...] = (32, 64, 128)
    """Channels after each halving: three make a code stand for 8x8x8 voxels, too few to copy a fracture through."""
    residual_layers: int = Field(2, ge=0)
    """At the resolution of the codes, in encoder and decoder each."""
    codebook: Update = "ema"
    codebook_decay: float = Field(0.99, gt=0, lt=1)
    revive_after: int = Field(50, ge=0)
    """Training batches after which an unused code is seeded anew; 0: never."""
    checkpointing: bool = True
    """Compute activations anew in the backward pass instead of keeping them: less memory, a tenth more time."""
    scores: Annotated[tuple[Score, ...], some_of(SCORES)] = SCORES
    """Whose z-scores make up the score and the heatmap."""
    smoothing: int = Field(5, ge=1)
    """Voxels (odd) of the box over which the squared error is averaged."""
    score_share: float = Field(0.01, gt=0, le=1)
    """Share of the highest values of a smoothed map that its score averages: 1 is the mean."""

    @field_validator("hidden")
    @classmethod
    def _widths_are_some(cls, hidden: tuple[int, ...]) -> tuple[int, ...]:
        if not 1 <= len(hidden) <= 5 or min(hidden) < 1:
            raise ValueError("must be one to five positive widths")
        return hidden

    @field_validator("smoothing")
    @classmethod
    def _smoothing_is_odd(cls, smoothing: int) -> int:
        if smoothing % 2 == 0:
            raise ValueError("must be odd")
        return smoothing


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(gcd(GROUPS, channels), channels)


class _Residual(nn.Module):
    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        hidden = max(1, channels // 2)
        self.block = nn.Sequential(
            _norm(channels),
            nn.ReLU(),
            nn.Conv3d(channels, hidden, 3, padding=1, bias=False),
            _norm(hidden),
            nn.ReLU(),
            nn.Conv3d(hidden, channels, 1),
            nn.Dropout3d(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.block(x)
        return out


def _encoder(channels: int, settings: Vqvae3dSettings) -> nn.Sequential:
    stages: list[nn.Module] = [
        nn.Sequential(nn.Conv3d(a, b, 4, stride=2, padding=1, bias=False), _norm(b), nn.ReLU())
        for a, b in pairwise((channels, *settings.hidden))
    ]
    width = settings.hidden[-1]
    stages += [_Residual(width, settings.dropout) for _ in range(settings.residual_layers)]
    return nn.Sequential(*stages, nn.Sequential(_norm(width), nn.ReLU(), nn.Conv3d(width, settings.latent_dim, 1)))


def _decoder(channels: int, settings: Vqvae3dSettings) -> nn.Sequential:
    width = settings.hidden[-1]
    stages: list[nn.Module] = [nn.Conv3d(settings.latent_dim, width, 3, padding=1)]
    stages += [_Residual(width, settings.dropout) for _ in range(settings.residual_layers)]
    stages += [
        nn.Sequential(_norm(a), nn.ReLU(), nn.ConvTranspose3d(a, b, 4, stride=2, padding=1))
        for a, b in pairwise((*settings.hidden[::-1], channels))
    ]
    return nn.Sequential(*stages)


class Vqvae3d(AnomalyModel):
    """Volumes ``(N, C, D, H, W)``, each side divisible by 2^len(hidden), to codes ``(N, d, h, w)`` and back.

    Two maps tell what is unusual: the squared reconstruction error, smoothed over a box; and the alignment loss
    map, the mean squared difference between encoder output and code. A score is the mean of the highest share of
    a map; those chosen are z-scored by what ``finish`` finds on held-out normals, and averaged.
    """

    outputs = (
        "score",
        "heatmap",
        "reconstruction",
        "alignment",
        "codes",
        *(f"score_{name}" for name in SCORES),
    )
    deviations = ("score", "heatmap")

    def __init__(self, shape: Shape, settings: Vqvae3dSettings) -> None:
        super().__init__()
        channels, *size = shape
        self.stride = 2 ** len(settings.hidden)
        if len(size) != 3 or any(side % self.stride for side in size):
            raise MedadError(
                f"size {'x'.join(map(str, size))} is not depth, height and width that divide by {self.stride}",
                "Choose e.g. prep.size=[128,128,128]",
            )
        self.settings = settings
        self.highest = max(1, round(settings.score_share * prod(side // 2 for side in size)))
        self.encoder = _encoder(channels, settings)
        self.quantizer = Quantizer(
            settings.num_embeddings,
            settings.latent_dim,
            commitment_cost=settings.commitment_cost,
            update=settings.codebook,
            decay=settings.codebook_decay,
            revive_after=settings.revive_after,
        )
        self.decoder = _decoder(channels, settings)
        self.score_scale = ZScore(len(SCORES))
        self.map_scale = ZScore(len(SCORES))

    def _staged(self, stages: nn.Module, x: Tensor) -> Tensor:
        """Run stages one by one, in training keeping only what lies between them.

        The codebook stays outside: computed anew, it would move twice.
        """
        keep = not (self.settings.checkpointing and self.training and torch.is_grad_enabled())
        for stage in stages.children():
            x = stage(x) if keep else checkpoint(stage, x, use_reentrant=False)
        return x

    def encode(self, x: Tensor) -> Quantized:
        """Quantise ``(N, C, D, H, W)`` to codes ``(N, d, h, w)``."""
        found: Quantized = self.quantizer(self._staged(self.encoder, x))
        return found

    def decode(self, codes: Tensor) -> Tensor:
        """Map codes ``(N, d, h, w)`` to a volume ``(N, C, D, H, W)``."""
        return self._staged(self.decoder, self.quantizer.lookup(codes))

    def maps(self, x: Tensor) -> tuple[Tensor, Tensor, Quantized]:
        """Return the smoothed error ``(N, 1, D, H, W)``, as it is, the reconstruction, and what ``x`` became."""
        found = self.encode(x)
        reconstruction = self._staged(self.decoder, found.quantized)
        error = squared_error(x, reconstruction)
        return box_mean(error, self.settings.smoothing, padded=False), reconstruction, found

    def _scores(self, error: Tensor, distances: Tensor) -> Tensor:
        """Average the highest share of each map, the alignment's where it is ``(N, d, h, w)``: ``(N, 2)``.

        Only every second voxel along each axis is looked at: neighbours of a smoothed map say nearly the same.
        """
        seen = error[..., ::2, ::2, ::2].flatten(1), distances.flatten(1)
        voxels = 1, (self.stride // 2) ** 3
        return torch.stack([self._highest(values, each) for values, each in zip(seen, voxels, strict=True)], dim=1)

    def _highest(self, values: Tensor, voxels: int) -> Tensor:
        """Average the highest share of ``(N, n)`` values, each of which stands for so many voxels."""
        if self.settings.score_share == 1:
            return values.mean(dim=1)
        count = -(-self.highest // voxels)
        highest, wanted = values.topk(count, dim=1).values, self.highest / voxels
        return (highest[:, :-1].sum(dim=1) + (wanted - count + 1) * highest[:, -1]) / wanted

    def _heatmap(self, error: Tensor, distances: Tensor) -> Tensor:
        """Average the z-scores of the maps chosen."""
        maps = {"reconstruction": (error, 1), "alignment": (distances[:, None], self.stride)}
        scaled = [
            in_a_row(repeated(self.map_scale.one(SCORES.index(name), maps[name][0]), maps[name][1]))
            for name in self.settings.scores
        ]
        heat = (reduce(torch.add, scaled) / len(scaled)).relu()  # better than normal is not anomalous
        return torch.unflatten(heat, 1, error.shape[1:])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return every output; ``alignment (N, 1, D, H, W)`` is the alignment loss map, ``codes`` are int64."""
        error, reconstruction, found = self.maps(x)
        scores = self._scores(error, found.distances)
        chosen = [SCORES.index(name) for name in self.settings.scores]
        return {
            "score": self.score_scale(scores)[:, chosen].mean(dim=1),
            "heatmap": self._heatmap(error, found.distances),
            "reconstruction": reconstruction,
            "alignment": repeated(found.distances[:, None], self.stride),
            "codes": found.codes,
            **{f"score_{name}": scores[:, i] for i, name in enumerate(SCORES)},
        }

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Mean squared error and the quantiser's loss, with the state of the codebook."""
        found = self.encode(batch.x)
        recon_loss = F.mse_loss(self._staged(self.decoder, found.quantized), batch.x)
        return found.terms(recon_loss)

    def ties(self, x: Tensor) -> dict[str, Tensor]:
        """Return how nearly each position of ``codes`` took another code."""
        with torch.no_grad():
            return {"codes": self.quantizer.ties(self._staged(self.encoder, x))}

    def _raw(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return raw scores ``(N, 2)`` and maps ``(N, 2, D, H, W)`` in the order of SCORES."""
        error, _, found = self.maps(x)
        maps = torch.cat((error, repeated(found.distances[:, None], self.stride)), dim=1)
        return self._scores(error, found.distances), maps

    def finish(self, train: Iterable[Tensor], held_out: Iterable[Tensor], log: Log) -> None:
        """Find mean and deviation of each score and map on held-out normals."""
        if not take_moments(map(self._raw, held_out), self.score_scale, self.map_scale):
            raise MedadError("no normal volumes are left to scale the scores by", "Add healthy patients")
        for kind, part in (("mean", self.score_scale.mean), ("std", self.score_scale.std)):
            log({f"{name}_{kind}": float(value) for name, value in zip(SCORES, part, strict=True)})


CROP_FIRST = (
    "Crop each vertebra first: medad-serve crop-vertebrae CT.nii.gz LABELS.nii.gz OUT, or send a ZIP of the scan"
    " with its label mask"
)
VERTEBRA_SIZE = (128, 128, 128)
# no body parts: vertebrae lie in scans of the neck, the trunk and the pelvis, and a label mask says which are there
VERTEBRA_INPUT = InputSpec(
    modalities=("CT",), plain_images=True, size=VERTEBRA_SIZE, values=(0.0, 1.0), hint=CROP_FIRST
)
VERTEBRA_PREP = PrepSpec(
    window=Window(center=0.5, width=1, function="LINEAR_EXACT"),  # crops are on 0..1 already
    size=VERTEBRA_SIZE,
    regions=Regions(size=VERTEBRA_SIZE, window=Window(center=400, width=1800)),
)
QUICK = ("train.max_epochs=30", "train.batch_size=4", "train.optimizer=adamw", "train.learning_rate=1e-3")
TRIAL = {"hidden": (8, 16), "latent_dim": 16, "num_embeddings": 16, "residual_layers": 1, "smoothing": 3}


@register(
    "vqvae3d",
    settings=Vqvae3dSettings,
    phantom="vertebrae",
    prep=VERTEBRA_PREP,
    input=VERTEBRA_INPUT,
    # The source's; augmentations are the recipe's.
    train={"optimizer": "adamw", "learning_rate": 1e-4, "batch_size": 4, "max_epochs": 200, "patience": 20},
    quick=(
        "prep.size=[32,32,32]",
        "settings.hidden=[16,32]",
        "settings.latent_dim=32",
        "settings.num_embeddings=64",
        "settings.checkpointing=false",
        *QUICK,
    ),
    trial_size=(16, 16, 16),
    trial_settings=TRIAL,
)
def vqvae3d(shape: Shape, settings: Vqvae3dSettings) -> Vqvae3d:
    """VQ-VAE on volumes of one vertebra each, scored by the highest smoothed reconstruction errors."""
    return Vqvae3d(shape, settings)
