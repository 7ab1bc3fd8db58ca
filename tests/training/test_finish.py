from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from medad_serve.crossvalidation import write_folds
from medad_serve.data.phantoms import write_head_ct
from medad_serve.errors import MedadError
from medad_serve.evaluation import evaluate, export_run
from medad_serve.models import base
from medad_serve.models.autoencoders import Autoencoder
from medad_serve.models.base import Log, Shape, families
from medad_serve.training.config import resolve
from medad_serve.training.fit import fit
from medad_serve.training.run import create_run, open_run, same_run

SMALL = ["train.max_epochs=1", "settings.hidden_dim=16", "settings.latent_dim=4", "calibration.policy=specificity=0.8"]


class Finishing(Autoencoder):
    """Notes what its finish is given, and adds a fixed code map."""

    outputs = ("score", "heatmap", "codes")

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape, 4, 4, 16)
        self.register_buffer("held_out_mean", torch.zeros(()))
        self.register_buffer("weights_at_finish", torch.zeros(()))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found = super().forward(x)
        return {"score": found["score"], "heatmap": found["heatmap"], "codes": (x[:, 0, ::32, ::32] * 9).long()}

    def finish(self, train: Iterable[Tensor], held_out: Iterable[Tensor], log: Log) -> None:
        assert not self.training
        for epoch in range(2):  # both can be read again
            log({"epoch": float(epoch), "seen": float(sum(len(x) for x in train))})
        self.held_out_mean.copy_(torch.cat(list(held_out)).mean())
        self.weights_at_finish.copy_(next(self.parameters()).sum())


@pytest.fixture
def finishing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registers the model above for one test."""
    like = families()["ae"]
    monkeypatch.setitem(base._families, "finishing", replace(like, name="finishing", builder=lambda s, _: Finishing(s)))


@pytest.mark.usefixtures("finishing")
def test_finish_sees_normals_after_the_best_weights_and_is_kept(cq500: Path, tmp_path: Path) -> None:
    config = resolve("finishing", f"cq500:{cq500}", None, ["train.max_epochs=3", *SMALL[3:]])
    run = create_run(config, tmp_path)
    data = run.prepared()
    fit(run, data)
    model = run.trained()
    held_out = data.tensor[data.rows(run.split.patients("validation"), label=0)]
    assert float(model.held_out_mean) == pytest.approx(float(held_out.mean()), rel=1e-5)
    assert float(model.weights_at_finish) == pytest.approx(next(model.parameters()).sum().item(), rel=1e-5)
    with (run.path / "finish.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(r["seen"]) for r in rows] == [len(data.rows(run.split.patients("train"), label=0))] * 2


@pytest.mark.usefixtures("finishing")
def test_code_maps_are_kept_with_the_run(cq500: Path, tmp_path: Path) -> None:
    run = create_run(resolve("finishing", f"cq500:{cq500}", None, ["train.max_epochs=1", *SMALL[3:]]), tmp_path)
    data = run.prepared()
    fit(run, data)
    codes = np.load(run.path / "latent" / "codes.npy")
    assert np.array_equal(codes, (data.tensor[:, 0, ::32, ::32] * 9).astype(np.int32))
    with (run.path / "latent" / "index.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(r["label"]) for r in rows] == data.labels.tolist()
    assert {r["role"] for r in rows} == set(run.split.roles.values())


def test_a_run_starts_from_another_and_keeps_its_split(cq500: Path, tmp_path: Path) -> None:
    first = create_run(resolve("ae", f"cq500:{cq500}", None, [*SMALL, "calibration.method=held_out"]), tmp_path)
    fit(first, first.prepared())
    config = resolve("ae", None, None, [f"init={first.path}", "train.learning_rate=1e-12", "train.max_epochs=1"])
    second = create_run(config, tmp_path)
    assert second.split == first.split
    assert config.settings == first.config.settings
    fit(second, second.prepared())
    for mine, theirs in zip(second.trained().parameters(), first.trained().parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)


def test_weights_of_another_shape_are_refused(cq500: Path, tmp_path: Path) -> None:
    first = create_run(resolve("ae", f"cq500:{cq500}", None, [*SMALL, "calibration.method=held_out"]), tmp_path)
    fit(first, first.prepared())
    config = resolve("ae", None, None, [f"init={first.path}", "settings.latent_dim=5"])
    second = create_run(config, tmp_path)
    with pytest.raises(MedadError, match="do not fit this model"):
        fit(second, second.prepared())


def test_folds_test_every_patient_once_and_are_reported_together(cq500: Path, tmp_path: Path) -> None:
    runs = []
    for fold in (1, 2):
        config = resolve("ae", f"cq500:{cq500}", None, [*SMALL[:3], "split.folds=2", f"fold={fold}"])
        run = create_run(config, tmp_path)
        data = run.prepared()
        fit(run, data)
        assert run.path.parent == tmp_path / "ae" / f"fold_{fold}"
        assert same_run(config, tmp_path) == run
        runs.append(run)
    figures, written = write_folds(runs, data)
    assert written == tmp_path / "ae" / "folds.json"
    assert figures["test_patients"] == 48
    assert len(figures["auroc"]["folds"]) == 2
    assert figures["auroc"]["mean"] == pytest.approx(np.mean(figures["auroc"]["folds"]))
    metrics, _ = evaluate(runs[0].path)
    assert metrics["slice"]["auroc"]["value"] == pytest.approx(figures["auroc"]["folds"][0])
    assert metrics["calibration"]["method"] == "validation"
    assert metrics["policy"] == "youden"
    with pytest.raises(MedadError, match="no cutoffs to export"):
        export_run(runs[0], ["onnx"])
    assert not runs[0].artifact.exists()


def test_a_model_that_builds_on_another_asks_for_its_run(cq500: Path, tmp_path: Path) -> None:
    with pytest.raises(MedadError, match=r"fracture builds on a trained vqvae3d. .*init=runs/vqvae3d"):
        resolve("fracture", f"volumes:{tmp_path}", None, [])
    other = create_run(resolve("ae", f"cq500:{cq500}", None, SMALL), tmp_path)
    with pytest.raises(MedadError, match="cannot start from .*, a run of ae. Name a run of vqvae3d"):
        resolve("fracture", None, None, [f"init={other.path}"])


def test_a_detector_trains_and_exports_on_healthy_patients_alone(tmp_path: Path) -> None:
    write_head_ct(tmp_path / "data", healthy=40, abnormal=0, slices=1, seed=0)
    run = create_run(resolve("ae", f"cq500:{tmp_path / 'data'}", None, [*SMALL, "train.batch_size=8"]), tmp_path)
    said: list[str] = []
    fit(run, run.prepared(), said.append)
    assert "no patient is abnormal: only specificity will be measured" in said
    artifact = export_run(run, ["onnx"])
    metrics, _ = evaluate(artifact)
    assert metrics["slice"]["auroc"]["value"] is None
    assert 0 <= metrics["slice"]["specificity"]["value"] <= 1


def test_the_folder_of_folds_names_one(tmp_path: Path) -> None:
    (tmp_path / "ae" / "fold_2").mkdir(parents=True)
    with pytest.raises(MedadError, match=r"holds folds. Name one of them, e.g. .*fold_2"):
        open_run(tmp_path / "ae")
