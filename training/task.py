"""The Lightning task: any registered detector, trained on normals, watched on both."""

from __future__ import annotations

from typing import Any, Literal, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from medad_serve.calibration import HeldOut
from medad_serve.metrics import auprc, auroc
from medad_serve.models import AnomalyModel, Batch
from medad_serve.training.augment import Augment
from medad_serve.training.config import TrainSettings


class DetectorTask(L.LightningModule):
    """Minimises ``model.loss`` and logs each of its terms; validation adds AUROC and AUPRC.

    ``patients`` is indexed by the row numbers that the batches carry; ``horizon`` counts the optimizer steps
    over which a schedule runs, also for a model that is trained for fewer.
    """

    def __init__(
        self,
        model: AnomalyModel,
        settings: TrainSettings,
        patients: tuple[str, ...],
        aggregation: str,
        horizon: int,
        augment: Augment | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.settings = settings
        self.patients = patients
        self.aggregation = aggregation
        self.horizon = horizon
        self.augment = augment
        self._seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """Return the loss of a batch, augmented where that was asked for."""
        if self.augment is not None:
            batch = self.augment(batch)
        terms = self.model.loss(batch)
        for name, value in terms.items():
            self.log(f"train/{name}", value, on_step=False, on_epoch=True, batch_size=len(batch.x))
        return terms["loss"]

    def validation_step(self, batch: Batch, _: int) -> None:
        """Score the batch; the loss counts what training would learn from."""
        learned = batch if self.model.supervised else _normals(batch)
        if len(learned.x):
            for name, value in self.model.loss(learned).items():
                self.log(f"val/{name}", value, on_epoch=True, batch_size=len(learned.x), prog_bar=name == "loss")
        score = self.model(batch.x)["score"]
        self._seen.append((score.float().cpu(), batch.labels.cpu(), batch.rows.cpu()))

    def on_validation_epoch_end(self) -> None:
        """Log AUROC and AUPRC at slice and patient level, where normals and abnormals are there."""
        scores, labels, rows = (torch.cat(parts).numpy() for parts in zip(*self._seen, strict=True))
        self._seen.clear()
        if len(np.unique(labels)) < 2:  # there are no abnormal patients, or all are kept for the test
            return
        held_out = HeldOut(scores.astype(np.float64), labels, tuple(self.patients[r] for r in rows))
        for level, data in (("", held_out), ("patient_", held_out.by_patient(self.aggregation))):
            self.log(f"val/{level}auroc", auroc(data.scores, data.labels), prog_bar=not level)
            self.log(f"val/{level}auprc", auprc(data.scores, data.labels))

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig | torch.optim.Optimizer:
        """Adam or AdamW over every parameter that is trained, with the schedule that was asked for."""
        optimizer = self._optimizer()
        if self.settings.scheduler == "cosine":
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.horizon)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
        if self.settings.scheduler == "plateau":
            monitor = self.settings.plateau_monitor or self.settings.monitor
            mode: Literal["min", "max"] = direction(monitor)
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
                optimizer, mode, factor=0.1, patience=max(1, self.settings.patience // 3)
            )
            every = min(self.settings.validate_every, self.settings.max_epochs)
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": plateau, "monitor": monitor, "frequency": every},
            }
        return optimizer

    def _optimizer(self) -> torch.optim.Optimizer:
        kind = torch.optim.AdamW if self.settings.optimizer == "adamw" else torch.optim.Adam
        # The fused step is up to 1.8x faster on a CPU; Lightning cannot clip gradients beneath it in mixed precision.
        return kind(
            [p for p in self.parameters() if p.requires_grad],
            self.settings.learning_rate,
            weight_decay=self.settings.weight_decay,
            fused=self.settings.precision == "32-true",
        )


def _normals(batch: Batch) -> Batch:
    normal = batch.labels == 0
    return Batch(batch.x[normal], batch.labels[normal], batch.rows[normal])


def direction(metric: str) -> Literal["min", "max"]:
    """Return whether a monitored value is minimised or maximised."""
    return "max" if metric.split("/")[-1].endswith(("auroc", "auprc", "accuracy")) else "min"


def logged(trainer: L.Trainer) -> dict[str, float]:
    """Return what an epoch logged, as plain numbers."""
    metrics = cast(dict[str, Any], trainer.callback_metrics)
    return {name: float(value) for name, value in sorted(metrics.items())}
