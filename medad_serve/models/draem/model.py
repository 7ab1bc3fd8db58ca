"""DRAEM: reconstructs, compares and marks what is faulty; with a severity head it says how badly."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from medad_serve.errors import MedadError
from medad_serve.models.base import AnomalyModel, Batch, Faults, Shape, register
from medad_serve.models.draem.draws import Draws
from medad_serve.models.draem.faults import FaultGenerator, SyntheticFaults
from medad_serve.models.draem.losses import focal, ssim
from medad_serve.models.draem.networks import STRIDE, Discriminative, Reconstructive, SeverityHead
from medad_serve.models.draem.settings import SEVERITY_INPUTS, DraemSettings
from medad_serve.models.smoothing import box_mean
from medad_serve.spec import InputSpec, PrepSpec


class Draem(AnomalyModel):
    """Learns from synthetic faults to tell images ``(N, C, H, W)`` from their reconstruction.

    Height and width must divide by ``32 * patch``. ``heatmap`` is the probability of a fault at each pixel.
    """

    outputs: ClassVar[tuple[str, ...]] = ("score", "heatmap", "reconstruction")

    def __init__(self, shape: Shape, settings: DraemSettings) -> None:
        super().__init__()
        channels, height, width = shape
        stride, patch = STRIDE * settings.patch, settings.patch
        if height % stride or width % stride:
            raise MedadError(f"size {height}x{width} does not divide by {stride}", "Choose e.g. prep.size=[256,256]")
        if settings.score == "window" and settings.score_window > min(height, width):
            raise MedadError(
                f"a score window of {settings.score_window} is larger than the image ({height}x{width})",
                "Lower settings.score_window",
            )
        self.settings = settings
        self.top = max(1, round(settings.score_top * height * width))
        self.generator = FaultGenerator(settings.faults, (height, width))
        self.reconstructive = Reconstructive(channels, settings.reconstructive_width, patch)
        self.discriminative = Discriminative(2 * channels, settings.discriminative_width, patch)

    def _maps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the reconstruction and the logits ``(N, 2, H, W)``."""
        reconstruction = self.reconstructive(x).float()  # half of it under autocast, as the logits
        return reconstruction, self.discriminative(torch.cat((reconstruction, x), dim=1)).float()

    def _score(self, heatmap: Tensor) -> Tensor:
        if self.settings.score == "top":
            return heatmap.flatten(1).topk(self.top, dim=1).values.mean(dim=1)
        side = self.settings.score_window
        return box_mean(heatmap, side).flatten(1).amax(dim=1)

    def _found(self, x: Tensor, reconstruction: Tensor, logits: Tensor) -> dict[str, Tensor]:
        """Return the outputs by name."""
        heatmap = _faulty(logits)
        return {"score": self._score(heatmap), "heatmap": heatmap, "reconstruction": reconstruction}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return ``score (N,)``, ``heatmap (N, 1, H, W)``, ``reconstruction``, and ``severity (N,)`` if known."""
        found = self._found(x, *self._maps(x))
        return {name: found[name] for name in self.outputs}

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return each term of the loss on a batch with synthetic faults; in evaluation always the same ones."""
        draws = Draws(len(batch.x)) if self.training else Draws.of_rows(batch.rows)
        made = self.generator(batch.x, draws)
        return self._terms(batch.x, made, *self._maps(made.synthetic_image))

    def _terms(self, x: Tensor, made: SyntheticFaults, reconstruction: Tensor, logits: Tensor) -> dict[str, Tensor]:
        """Return the loss and its terms: what images ``x`` without faults became, and what was found of it."""
        weights, (low, high) = self.settings.weights, self.settings.faults.values
        l2_loss = F.mse_loss(reconstruction, x)
        ssim_loss = 1 - ssim(reconstruction, x, high - low)
        segmentation_loss = focal(logits, made.fault_mask[:, 0].long(), self.settings.focal_gamma)
        return {
            "loss": weights.reconstruction * (l2_loss + ssim_loss) + weights.segmentation * segmentation_loss,
            "l2_loss": l2_loss,
            "ssim_loss": ssim_loss,
            "segmentation_loss": segmentation_loss,
        }

    def check_values(self, values: tuple[float, float]) -> None:
        """Raise MedadError where faults would clip what is not their patch, or leave the scale of the images."""
        own = self.settings.faults.values
        if max(abs(a - b) for a, b in zip(own, values, strict=True)) > 1e-3 * (values[1] - values[0]):
            raise MedadError(
                f"faults have values {own[0]:g} to {own[1]:g}, prepared images {values[0]:g} to {values[1]:g}",
                f"Set settings.faults.values=[{values[0]:.5g},{values[1]:.5g}]",
            )

    def with_faults(self, x: Tensor, seed: int) -> Faults:
        """Give every item of ``x (N, C, H, W)`` a fault such as training makes, graded in severity."""
        draws = Draws(len(x), torch.Generator().manual_seed(seed))
        made = self.generator(x, draws, probability=1.0)
        return Faults(made.synthetic_image, made.fault_mask, made.severity_label)


def _faulty(logits: Tensor) -> Tensor:
    """Return the probability of a fault ``(N, 1, H, W)``: the softmax of two logits, which takes onnxruntime 2.5 ms
    of 256x256 and a sigmoid 0.3.
    """
    healthy, faulty = logits.flatten(2).unbind(dim=1)
    return torch.unflatten((faulty - healthy).sigmoid(), 1, (1, *logits.shape[2:]))


class DraemWithSeverity(Draem):
    """A DRAEM that also estimates how severe the fault is: ``severity``, continuous in 0..severity_max."""

    outputs: ClassVar[tuple[str, ...]] = ("score", "heatmap", "severity", "reconstruction")

    def __init__(self, shape: Shape, settings: DraemSettings) -> None:
        super().__init__(shape, settings)
        self.seen = SEVERITY_INPUTS[settings.severity_input]
        channels = 2 + shape[0] * len(self.seen)
        self.severity = SeverityHead(channels, settings.severity_widths, settings.severity_hidden, settings.dropout)

    def _graded(self, x: Tensor, reconstruction: Tensor, logits: Tensor) -> Tensor:
        """Return the severity as a share of the highest, ``(N,)``."""
        known = {"original": x, "reconstruction": reconstruction, "error_map": (x - reconstruction).abs()}
        faulty = _faulty(logits)
        severity: Tensor = self.severity(torch.cat((1 - faulty, faulty, *(known[name] for name in self.seen)), dim=1))
        return severity

    def _found(self, x: Tensor, reconstruction: Tensor, logits: Tensor) -> dict[str, Tensor]:
        severity = self._graded(x, reconstruction, logits) * self.settings.faults.severity_max
        return {**super()._found(x, reconstruction, logits), "severity": severity}

    def _terms(self, x: Tensor, made: SyntheticFaults, reconstruction: Tensor, logits: Tensor) -> dict[str, Tensor]:
        """Add the severity's; compared as shares of the highest, so that weights mean the same whatever that is."""
        terms = super()._terms(x, made, reconstruction, logits)
        highest, settings = self.settings.faults.severity_max, self.settings
        severity, truth = self._graded(made.synthetic_image, reconstruction, logits), made.severity_label / highest
        severity_loss = (F.mse_loss if settings.severity_loss == "mse" else F.smooth_l1_loss)(severity, truth)
        return {
            **terms,
            "loss": terms["loss"] + settings.weights.severity * severity_loss,
            "severity_loss": severity_loss,
            "severity_mae": highest * (severity - truth).abs().mean().detach(),
        }


@register(
    "draem",
    settings=DraemSettings,
    phantom="hdmap",
    prep=PrepSpec(size=(256, 256)),
    input=InputSpec(min_size=32),
    train={"learning_rate": 1e-4, "batch_size": 16},  # the source's
    quick=(
        "prep.size=[128,128]",  # the lines of a map are lost below
        "settings.reconstructive_width=8",
        "settings.discriminative_width=8",
        "settings.faults.patch_width_range=[8,40]",
        "settings.score_window=17",
        "train.max_epochs=16",
        "train.batch_size=8",
        "train.learning_rate=1e-3",
        "train.scheduler=cosine",
        "train.validate_every=4",
    ),
    trial_size=(64, 64),
    trial_settings={
        "reconstructive_width": 4,
        "discriminative_width": 4,
        "severity_widths": (8, 8, 8),
        "severity_hidden": (8, 8),
        "dropout": 0.0,
        "faults": {"patch_width_range": (5, 20), "contrast": 0.6, "darker": 0.2},
        "score_window": 5,
    },
)
def draem(shape: Shape, settings: DraemSettings) -> Draem:
    """DRAEM: reconstruction, discriminative map and fault severity, learned from synthetic faults."""
    model = (DraemWithSeverity if settings.severity_head else Draem)(shape, settings)
    return model.to(memory_format=torch.channels_last)  # a training step on a CPU then takes 0.6 of the time
