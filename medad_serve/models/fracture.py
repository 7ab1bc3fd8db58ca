"""Fracture from weak labels: a small classifier sees a vertebra beside what a trained VQ-VAE cannot reconstruct."""

from __future__ import annotations

from math import gcd
from typing import Any, Self, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from medad_serve.models.balance import follow, weights
from medad_serve.models.base import AnomalyModel, Batch, Shape, register
from medad_serve.models.smoothing import enlarged
from medad_serve.models.vqvae3d import QUICK, SCORES, TRIAL, VERTEBRA_INPUT, VERTEBRA_PREP, Vqvae3d, Vqvae3dSettings
from medad_serve.spec import Frozen

GROWTH = 8
"""Channels that ``growth`` counts."""


class FractureSettings(Frozen):
    """Widths of the classifier, and the VQ-VAE within (those of the run named by ``init``)."""

    reconstruction: Vqvae3dSettings = Vqvae3dSettings()
    growth: int = Field(1, ge=1)
    """Eights of channels that each layer adds; the network starts with twice as many."""
    layers: tuple[int, ...] = (2, 4, 4)
    """Of each dense block; between two of them sizes are halved."""
    dropout: float = Field(0.1, ge=0, lt=1)


def _network(channels: int, settings: FractureSettings) -> nn.Module:
    """Return a DenseNet with group norm, which needs no batch statistics, of as many groups as its widths allow."""
    from monai.networks.nets.densenet import DenseNet  # costs seconds, and other models do without

    growth = GROWTH * settings.growth
    width, groups = 2 * growth, growth
    for layers in settings.layers:
        for _ in range(layers):
            groups = gcd(groups, width)
            width += growth
        groups, width = gcd(groups, width), width // 2
    return DenseNet(
        spatial_dims=3,
        in_channels=channels,
        out_channels=1,
        init_features=2 * growth,
        growth_rate=growth,
        block_config=settings.layers,
        bn_size=2,
        norm=("group", {"num_groups": gcd(GROWTH, groups)}),
        dropout_prob=settings.dropout,
    )


class FractureClassifier(AnomalyModel):
    """MONAI DenseNet over two channels: the volume, and the z-scored reconstruction error of a frozen VQ-VAE.

    One label of each volume says whether something in it is fractured. The class activation map (Zhou et al.,
    CVPR 2016) says where the network saw it; the heatmap is the reconstruction error weighted by it.
    """

    outputs = ("score", "heatmap", "probability")
    supervised = True
    share: Tensor

    def __init__(self, shape: Shape, settings: FractureSettings) -> None:
        super().__init__()
        self.reconstructor = Vqvae3d(shape, settings.reconstruction).requires_grad_(False).eval()
        self.network = _network(shape[0] + 1, settings)
        self.register_buffer("share", torch.tensor(0.5))

    def train(self, mode: bool = True) -> Self:
        """Switch the classifier alone: the VQ-VAE neither drops channels nor moves its codebook."""
        super().train(mode)
        self.reconstructor.eval()
        return self

    def start_from(self, weights: dict[str, Tensor]) -> None:
        """Take the VQ-VAE, or with ``reconstructor.`` among the names the whole model."""
        whole = any(name.startswith("reconstructor.") for name in weights)
        (self if whole else self.reconstructor).load_state_dict(weights)

    def _error(self, x: Tensor) -> Tensor:
        """Return how unusual the smoothed reconstruction error of each voxel is, ``(N, 1, D, H, W)``."""
        error, *_ = self.reconstructor.maps(x)
        return self.reconstructor.map_scale.one(SCORES.index("reconstruction"), error)

    def _seen(self, x: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
        """Return the class activation map ``(N, 1, d, h, w)`` and its mean, the logit ``(N,)``."""
        features = self.network.get_submodule("features")(torch.cat((x, error), dim=1)).relu()
        out = cast(nn.Linear, self.network.get_submodule("class_layers.out"))
        places = F.conv3d(features, out.weight[:, :, None, None, None], out.bias)
        return places, places.mean(dim=(1, 2, 3, 4))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return ``score (N,)`` and ``probability (N,)``, both the probability of a fracture, and ``heatmap``."""
        error = self._error(x)
        places, logit = self._seen(x, error)
        weight = enlarged(places.sigmoid(), x.shape[2:])
        probability = logit.sigmoid()
        return {"score": probability, "heatmap": error.relu() * weight, "probability": probability.clone()}

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Binary cross-entropy in which healthy and fractured weigh the same, by their running shares."""
        labels = batch.labels.to(batch.x.dtype)
        if self.training:
            follow(self.share, labels)
        _, logit = self._seen(batch.x, self._error(batch.x))
        right = ((logit > 0) == (labels > 0)).to(logit.dtype).mean()
        return {
            "loss": F.binary_cross_entropy_with_logits(logit, labels, weights(labels, self.share)),
            "accuracy": right,
        }


def _adopt(settings: dict[str, Any]) -> dict[str, Any]:
    return {"reconstruction": settings}


@register(
    "fracture",
    settings=FractureSettings,
    phantom="vertebrae",
    prep=VERTEBRA_PREP,
    input=VERTEBRA_INPUT,
    train={
        "optimizer": "adamw",
        "learning_rate": 1e-4,
        "weight_decay": 1e-2,
        "batch_size": 4,
        "max_epochs": 100,
        "monitor": "val/auroc",
        "patience": 20,
    },
    quick=(
        "settings.layers=[2,2]",
        *QUICK,
        "train.max_epochs=80",
        # five of its volumes validate: their AUROC is soon 1, long before the loss is low
        "train.monitor=val/loss",
        "train.patience=80",
    ),
    trial_size=(16, 16, 16),
    trial_settings={"reconstruction": TRIAL, "layers": (1, 1), "dropout": 0.0},
    builds_on="vqvae3d",
    adopt=_adopt,
)
def fracture(shape: Shape, settings: FractureSettings) -> FractureClassifier:
    """Fracture classifier on a vertebra and its reconstruction error; start it with init=RUN of a vqvae3d."""
    return FractureClassifier(shape, settings)
