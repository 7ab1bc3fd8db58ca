from __future__ import annotations

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medad_serve.errors import MedadError
from medad_serve.models import AnomalyModel, Batch
from medad_serve.training.batches import loader
from medad_serve.training.config import TrainSettings, resolve
from medad_serve.training.task import DetectorTask, logged

DATA = "folders:/nowhere"


class Threshold(AnomalyModel):
    """Calls an item abnormal by the sign of its mean; what it learns changes nothing."""

    supervised = True

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the mean as score."""
        return {"score": x.mean(dim=(1, 2, 3)), "heatmap": x}

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return a loss without a gradient of use, and accuracy."""
        right = (self(batch.x)["score"] > 0) == (batch.labels > 0)
        return {"loss": self.weight * 0 + 1, "accuracy": right.float().mean()}


def _fitted(settings: TrainSettings, labels: list[int], epochs: int = 1) -> tuple[DetectorTask, L.Trainer]:
    """Train on nine items of rising mean, validated in batches of four, four and one."""
    tensor = np.broadcast_to(np.linspace(-1, 1, 9, dtype=np.float32)[:, None, None, None], (9, 1, 2, 2)).copy()
    rows, known = np.arange(9), np.array(labels)
    task = DetectorTask(Threshold(), settings, tuple("abcdefghi"), "max", 10)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(task, loader(tensor, known, rows, 4, shuffle=True), loader(tensor, known, rows, 4))
    return task, trainer


def test_accuracy_counts_every_validation_item_once() -> None:
    """Seven of nine are right; the mean over batches of 4, 4 and 1 would be another figure."""
    _, trainer = _fitted(TrainSettings(), [0, 0, 0, 1, 0, 1, 1, 1, 0])
    assert logged(trainer)["val/accuracy"] == pytest.approx(7 / 9)
    assert np.mean([3 / 4, 4 / 4, 0 / 1]) != pytest.approx(7 / 9, abs=0.1)


def test_plateau_may_watch_another_figure_than_the_checkpoint() -> None:
    """Accuracy never rises: the rate falls by ten after the epochs of patience, however the loss does."""
    settings = TrainSettings(
        scheduler="plateau", monitor="train/loss", plateau_monitor="val/accuracy", patience=3, learning_rate=1e-3
    )
    task, trainer = _fitted(settings, [0, 0, 0, 0, 0, 1, 1, 1, 1], epochs=4)
    found = task.configure_optimizers()
    assert isinstance(found, dict)
    assert found["lr_scheduler"]["monitor"] == "val/accuracy"  # type: ignore[index]
    assert found["lr_scheduler"]["scheduler"].mode == "max"  # type: ignore[index]
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-4)


def test_plateau_watches_what_the_checkpoint_does_unless_told() -> None:
    task = DetectorTask(Threshold(), TrainSettings(scheduler="plateau", monitor="val/loss"), ("a",), "max", 10)
    found = task.configure_optimizers()
    assert isinstance(found, dict)
    assert found["lr_scheduler"]["monitor"] == "val/loss"  # type: ignore[index]
    assert found["lr_scheduler"]["scheduler"].mode == "min"  # type: ignore[index]


def test_what_no_figure_is_called_cannot_be_watched() -> None:
    with pytest.raises(MedadError, match=r"train\.plateau_monitor"):
        resolve("efficientnet_b0", DATA, None, ["train.plateau_monitor=accuracy"])


def test_a_classifier_trains_as_its_source_did() -> None:
    found = resolve("efficientnet_b0", DATA, None, [])
    train = found.train
    assert (train.optimizer, train.learning_rate, train.weight_decay, train.gradient_clip) == ("adamw", 1e-4, 1e-4, 1.0)
    assert (train.scheduler, train.plateau_monitor) == ("plateau", "val/accuracy")
    assert (found.settings["dropout"], found.settings["label_smoothing"]) == (0.3, 0.05)
    assert train.augment.clahe == 0.5
    assert found.calibration.policy == "youden"


def test_volumes_with_clahe_are_refused_before_data_is_read() -> None:
    with pytest.raises(MedadError, match="reads volumes, which clahe and jpeg cannot change"):
        resolve("vqvae3d", DATA, None, ["train.augment.clahe=0.5"])


@pytest.mark.parametrize(
    "recipe", ["chest_efficientnet_b0", "chest_efficientnet_b0_tuned", "chest_efficientnet_b0_pretrained"]
)
def test_recipes_prepare_films_alike_and_differ_in_how_they_learn(recipe: str) -> None:
    found = resolve("efficientnet_b0", DATA, recipe, [])
    assert found.prep.normalize is not None
    assert found.prep.fit == "cover"
    pretrained = recipe.endswith("pretrained")
    assert found.train.learning_rate == {"b0": 1e-3, "tuned": 4e-4, "pretrained": 1e-4}[recipe.split("_")[-1]]
    assert found.settings["prevalence"] == 0.5
    assert found.train.scheduler == ("plateau" if pretrained else "cosine")
