from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from medad_serve.errors import MedadError
from medad_serve.evaluation import make_bundle
from medad_serve.training.batches import loader
from medad_serve.training.config import resolve
from medad_serve.training.fit import fit, steps_of_best
from medad_serve.training.run import create_run, open_run


def _rows(path: Path) -> list[dict[str, str]]:
    with (path / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_run_directory_holds_what_it_was_made_from(run_path: Path) -> None:
    names = {p.name for p in run_path.iterdir()}
    assert {"config.yaml", "split.json", "best.ckpt", "last.ckpt", "metrics.csv", "finished"} <= names
    config = yaml.safe_load((run_path / "config.yaml").read_text())
    assert config["settings"]["hidden_dim"] == 64
    assert run_path.parent.name == "ae"
    assert open_run(run_path.parent).path == run_path


def test_every_epoch_logs_losses_and_both_levels(run_path: Path) -> None:
    rows = _rows(run_path)
    assert [int(r["epoch"]) for r in rows] == [0, 1, 2]
    columns = {"train/loss", "val/loss", "val/auroc", "val/auprc", "val/patient_auroc", "val/patient_auprc"}
    assert columns <= set(rows[0])
    assert all(0 <= float(r["val/auroc"]) <= 1 for r in rows)
    assert float(rows[-1]["train/loss"]) < float(rows[0]["train/loss"])


def test_only_healthy_training_patients_are_learned_from(run_path: Path) -> None:
    run = open_run(run_path)
    data = run.prepared()
    rows = data.rows(run.split.patients("train"), label=0)
    assert not data.labels[rows].any()
    assert not {data.patients[r] for r in rows} & run.split.patients("validation", "calibration", "test")


def test_out_of_fold_models_never_saw_their_fold(cq500: Path, tmp_path: Path) -> None:
    overrides = ["train.max_epochs=1", "settings.hidden_dim=16", "calibration.method=out_of_fold", "split.folds=3"]
    run = create_run(resolve("ae", f"cq500:{cq500}", None, overrides), tmp_path)
    fit(run, run.prepared())
    assert run.split.method == "out_of_fold"
    assert not run.split.patients("calibration")
    assert set(run.split.folds) == run.split.patients("train")
    weights = [run.trained(folder).state_dict() for folder in (None, *run.folds())]
    assert len(weights) == 4
    first = next(iter(weights[0]))
    assert not any(torch.equal(weights[0][first], other[first]) for other in weights[1:])
    assert [steps_of_best(folder) for folder in run.folds()] == [steps_of_best(run.path)] * 3
    bundle = make_bundle(run, run.prepared())
    assert (bundle.method, bundle.folds) == ("out_of_fold", 3)
    healthy = [p for p in bundle.parts if not p.labels.any()]
    assert sum(len(set(p.patients)) for p in healthy) == len(run.split.folds)
    for number, part in enumerate(healthy):
        assert {run.split.folds[p] for p in part.patients} == {number}
        assert torch.equal(part.model.state_dict()[first], weights[1 + number][first])


def test_same_seed_same_weights(cq500: Path, tmp_path: Path) -> None:
    overrides = ["train.max_epochs=1", "settings.hidden_dim=16", "calibration.policy=specificity=0.8"]
    overrides += ["calibration.method=held_out"]
    trained = []
    for name in ("a", "b"):
        run = create_run(resolve("ae", f"cq500:{cq500}", None, overrides), tmp_path / name)
        fit(run, run.prepared())
        trained.append(run.trained().state_dict())
    assert all(torch.equal(trained[0][k], trained[1][k]) for k in trained[0])


def test_early_stopping_and_bf16_and_clipping(cq500: Path, tmp_path: Path) -> None:
    overrides = ["train.max_epochs=40", "train.patience=1", "train.min_delta=1e3", "settings.hidden_dim=16"]
    overrides += ["train.precision=bf16-mixed", "train.gradient_clip=0.5", "calibration.policy=specificity=0.8"]
    overrides += ["calibration.method=held_out"]
    run = create_run(resolve("ae", f"cq500:{cq500}", None, overrides), tmp_path)
    fit(run, run.prepared())
    assert len(_rows(run.path)) == 2


def test_a_killed_run_resumes_where_it_stood(cq500: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "medad_serve.cli.main", "train"]
    settings = ["train.max_epochs=25", "train.checkpoint_seconds=0", "settings.hidden_dim=16", "train.patience=99"]
    settings += ["calibration.policy=specificity=0.8", "calibration.method=held_out", f"--runs={tmp_path}"]
    process = subprocess.Popen(
        [*command, "ae", "--data", f"cq500:{cq500}", *settings], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    logs: list[Path] = []
    while time.monotonic() < deadline:
        logs = list(tmp_path.glob("ae/*/metrics.csv"))
        if logs and logs[0].read_text().count("\n") > 3 and (logs[0].parent / "last.ckpt").is_file():
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run = logs[0].parent
    assert not (run / "finished").exists(), "the run ended before it was killed"
    with pytest.raises(MedadError, match="not trained to its end"):
        open_run(run).trained()
    before = len(_rows(run))
    stood = torch.load(run / "last.ckpt", weights_only=True)["epoch"]
    assert stood >= 1
    subprocess.run([*command, "--resume", str(run)], check=True, capture_output=True, env=dict(os.environ))
    rows = _rows(run)
    assert [int(r["epoch"]) for r in rows] == list(range(25))
    assert before >= 3
    assert (run / "finished").is_file()


def test_batches_are_gathered_rows() -> None:
    tensor = np.arange(40, dtype=np.float32).reshape(10, 1, 2, 2)
    batches = list(loader(tensor, np.array([1, 4, 9]), 2))
    assert [len(x) for x, _ in batches] == [2, 1]
    assert np.array_equal(torch.cat([x for x, _ in batches]).numpy(), tensor[[1, 4, 9]])
    assert torch.cat([r for _, r in batches]).tolist() == [1, 4, 9]


def test_what_is_no_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(MedadError, match="is no run"):
        open_run(tmp_path)
