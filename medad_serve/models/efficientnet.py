"""Chest X-ray classifier: timm's EfficientNet with one logit, a class activation map and a fitted probability."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from medad_serve.models.balance import follow, weights
from medad_serve.models.base import AnomalyModel, Batch, Log, Shape, register
from medad_serve.models.smoothing import enlarged
from medad_serve.models.temperature import Temperature
from medad_serve.spec import Frozen, InputSpec, PrepSpec, Standardize

if TYPE_CHECKING:
    from timm.models.efficientnet import EfficientNet

GRAY = Standardize(mean=0.449, std=0.226)
"""Means over the three channels of ImageNet's (0.485, 0.456, 0.406) and (0.229, 0.224, 0.225)."""

HEAD_STD = 0.01
"""Of the weights of a fresh last layer."""


class EfficientnetSettings(Frozen):
    """Head and loss of the classifier."""

    dropout: float = Field(0.3, ge=0, lt=1)
    """Before the last layer."""
    label_smoothing: float = Field(0.05, ge=0, lt=1)
    """Targets are ``smoothing / 2`` and ``1 - smoothing / 2``."""
    prevalence: float | None = Field(None, gt=0, lt=1)
    """Share of abnormal items where ``probability`` is read; None: that among the training items."""


def _network(channels: int, settings: EfficientnetSettings) -> EfficientNet:
    from timm.models.efficientnet import efficientnet_b0 as b0  # costs a second, and other models do without

    network: EfficientNet = b0(in_chans=channels, num_classes=1, drop_rate=settings.dropout)
    # timm draws by the number of classes: of one, 1280 weights of up to 1, and logits of ten and more to begin with.
    nn.init.normal_(network.get_submodule("classifier").get_parameter("weight"), std=HEAD_STD)
    # Channels last in memory: a training step on a CPU takes 0.7 of the time, as depthwise convolutions like it.
    return network.to(memory_format=torch.channels_last)


class EfficientnetClassifier(AnomalyModel):
    """EfficientNet-B0 (Tan and Le, ICML 2019), learned from one label an image.

    ``score`` is the logit: a sigmoid in float32 gives 1 for every logit from 17 on, and what ties cannot be ranked.
    ``probability`` is that logit after temperature and offset, found on validation items. ``heatmap`` is the class
    activation map (Zhou et al., CVPR 2016), in units of the logit: what each place adds to it.
    """

    outputs = ("score", "heatmap", "probability")
    supervised = True
    logit = True
    share: Tensor

    def __init__(self, shape: Shape, settings: EfficientnetSettings) -> None:
        super().__init__()
        self.settings = settings
        self.network = _network(shape[0], settings)
        self.calibrated = Temperature()
        self.register_buffer("share", torch.tensor(0.5))

    def places(self, features: Tensor) -> Tensor:
        """Map features ``(N, K, h, w)`` to what each place gives the logit, ``(N, 1, h, w)``: its mean, less the bias.

        After global average pooling and one linear layer this is Grad-CAM (Selvaraju et al., ICCV 2017) times h x w.
        """
        head = self.network.get_submodule("classifier").get_parameter("weight")
        return F.conv2d(features, head[:, :, None, None])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return ``score (N,)``, ``heatmap (N, 1, H, W)`` and ``probability (N,)``."""
        features = self.network.forward_features(x)
        logit = self.network.forward_head(features)[:, 0]
        seen = enlarged(self.places(features).relu(), x.shape[2:])
        return {"score": logit, "heatmap": seen, "probability": self.calibrated(logit)}

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Binary cross-entropy with smoothed labels, in which healthy and abnormal weigh the same."""
        labels = batch.labels.to(batch.x.dtype)
        if self.training:
            follow(self.share, labels)
        # Cross-entropy stays in float32 where mixed precision gives a logit of 8 bits.
        logit = self.network(batch.x)[:, 0].float()
        smoothing = self.settings.label_smoothing
        target = labels * (1 - smoothing) + smoothing / 2
        right = ((logit > 0) == (labels > 0)).to(logit.dtype).mean()
        loss = F.binary_cross_entropy_with_logits(logit, target, weights(labels, self.share))
        return {"loss": loss, "accuracy": right}

    @torch.no_grad()
    def fit_probability(self, held_out: Iterable[Batch], log: Log) -> None:
        """Fit temperature and offset on items that trained nothing; log calibration error and likelihood.

        Their own share of abnormal items says nothing: who calibrates cutoffs is healthy, who chooses them is not.
        """
        found = [(self.network(batch.x)[:, 0], batch.labels) for batch in held_out]
        logit, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
        if 0 < int(labels.sum()) < len(labels):
            prevalence = self.settings.prevalence or float(self.share)
            log({"prevalence": prevalence, **self.calibrated.fit(logit, labels, prevalence)})


@register(
    "efficientnet_b0",
    settings=EfficientnetSettings,
    phantom="chest",
    prep=PrepSpec(window="file", size=(224, 224), fit="cover", standardize=GRAY),
    input=InputSpec(
        modalities=("CR", "DX"),
        plain_images=True,
        body_parts=("CHEST", "THORAX", "LUNG"),
        bits=(8, 16),
        spacing_mm=(0.05, 10.0),  # finer are dental films
    ),
    train={
        "optimizer": "adamw",
        "learning_rate": 1e-4,
        "weight_decay": 1e-4,
        "scheduler": "plateau",
        "plateau_monitor": "val/accuracy",
        "gradient_clip": 1.0,
        "batch_size": 32,
        "max_epochs": 50,
        "monitor": "val/loss",
        "patience": 9,
        "augment": {
            "clahe": 0.5,
            "flip": 0.5,
            "crop": 0.2,
            "rotate_degrees": 10,
            "translate": 0.05,
            "brightness": 0.15,
            "contrast": 0.15,
            "blur_sigma": 1.0,
        },
    },
    quick=(
        "prep.size=[64,64]",
        "settings.dropout=0.1",
        "train.batch_size=16",
        "train.max_epochs=20",
        "train.patience=20",
        "train.learning_rate=1e-3",
        "train.scheduler=cosine",
        # from scratch within minutes, what costs time or hides the little there is to see is left out
        "train.augment.clahe=0",
        "train.augment.blur_sigma=0",
        "train.augment.rotate_degrees=0",
        "train.augment.crop=0",
    ),
    trial_size=(48, 48),
    trial_settings={"dropout": 0.0},
    calibration={"policy": "youden"},
)
def efficientnet_b0(shape: Shape, settings: EfficientnetSettings) -> EfficientnetClassifier:
    """EfficientNet-B0 on chest radiographs: pneumonia from one label an image, with a map of where it was seen."""
    return EfficientnetClassifier(shape, settings)
