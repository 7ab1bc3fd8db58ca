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
from medad_serve.training import fit as fit_module
from medad_serve.training.batches import loader
from medad_serve.training.config import resolve
from medad_serve.training.fit import fit, steps_of_best
from medad_serve.training.run import create_run, open_run

HELD_OUT = ["settings.hidden_dim=16", "calibration.policy=specificity=0.8", "calibration.method=held_out"]
QUICK = ["train.max_epochs=1", *HELD_OUT]
TRAIN = [sys.executable, "-m", "medad_serve.cli.main", "train"]


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


@pytest.fixture
def learned(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The rows that training really gets, one array a fit."""
    rows: list[np.ndarray] = []

    def spy(tensor, labels, given, batch_size, *, shuffle=False, pinned=False):
        if shuffle:
            rows.append(np.asarray(given))
        return loader(tensor, labels, given, batch_size, shuffle=shuffle, pinned=pinned)

    monkeypatch.setattr(fit_module, "loader", spy)
    return rows


def test_only_healthy_training_patients_are_learned_from(cq500: Path, tmp_path: Path, learned) -> None:
    run = create_run(resolve("ae", f"cq500:{cq500}", None, QUICK), tmp_path)
    data = run.prepared()
    fit(run, data)
    assert len(learned) == 1
    assert {data.patients[r] for r in learned[0]} == run.split.patients("train")
    assert not data.labels[learned[0]].any()


def test_out_of_fold_models_never_saw_their_fold(cq500: Path, tmp_path: Path, learned) -> None:
    overrides = ["train.max_epochs=1", "settings.hidden_dim=16", "calibration.method=out_of_fold", "split.folds=3"]
    run = create_run(resolve("ae", f"cq500:{cq500}", None, overrides), tmp_path)
    data = run.prepared()
    fit(run, data)
    assert not run.split.patients("calibration")
    assert set(run.split.folds) == run.split.patients("train")
    assert len(learned) == 4
    for number, rows in enumerate(learned[1:]):
        assert {data.patients[r] for r in rows} == {p for p, k in run.split.folds.items() if k != number}
        assert not data.labels[rows].any()
    assert [steps_of_best(folder) for folder in run.folds()] == [steps_of_best(run.path)] * 3
    bundle = make_bundle(run, data)
    assert (bundle.method, bundle.folds) == ("out_of_fold", 3)
    healthy = [p for p in bundle.parts if not p.labels.any()]
    assert sum(len(set(p.patients)) for p in healthy) == len(run.split.folds)
    for folder, part in zip(run.folds(), healthy, strict=True):
        assert {run.split.folds[p] for p in part.patients} == {int(folder.name[-1])}
        expected = run.trained(folder).state_dict()
        assert all(torch.equal(part.model.state_dict()[k], expected[k]) for k in expected)


def test_same_seed_same_weights(cq500: Path, tmp_path: Path) -> None:
    trained = []
    for name in ("a", "b"):
        run = create_run(resolve("ae", f"cq500:{cq500}", None, QUICK), tmp_path / name)
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


def _stopped_in_training(cq500: Path, runs: Path, how: signal.Signals) -> tuple[Path, int, str]:
    """Start a long training, send it a signal after a few epochs; return run, exit code and error text."""
    settings = ["train.max_epochs=20000", "train.checkpoint_seconds=0", "train.patience=20000", *HELD_OUT]
    process = subprocess.Popen(
        [*TRAIN, "ae", "--data", f"cq500:{cq500}", f"--runs={runs}", *settings], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    logs: list[Path] = []
    while time.monotonic() < deadline and process.poll() is None:
        logs = list(runs.glob("ae/*/metrics.csv"))
        if logs and logs[0].read_text().count("\n") > 3 and (logs[0].parent / "last.ckpt").is_file():
            break
        time.sleep(0.02)
    process.send_signal(how)
    said = process.communicate()[1]
    assert not (logs[0].parent / "finished").exists(), "the run ended before it was stopped"
    return logs[0].parent, process.returncode, said


def test_a_killed_run_resumes_where_it_stood(cq500: Path, tmp_path: Path) -> None:
    run, _, _ = _stopped_in_training(cq500, tmp_path, signal.SIGKILL)
    with pytest.raises(MedadError, match="not trained to its end"):
        open_run(run).trained()
    before = len(_rows(run))
    stood = torch.load(run / "last.ckpt", weights_only=True)["epoch"]
    assert stood >= 1
    # Ask for few epochs more, so that the test stays short.
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["train"]["max_epochs"] = before + 3
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    subprocess.run([*TRAIN, "--resume", str(run)], check=True, capture_output=True, env=dict(os.environ))
    assert [int(r["epoch"]) for r in _rows(run)] == list(range(before + 3))
    assert (run / "finished").is_file()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_fails_with_the_way_to_go_on(cq500: Path, tmp_path: Path, how: signal.Signals) -> None:
    run, code, said = _stopped_in_training(cq500, tmp_path, how)
    assert code == 1
    assert f"Error: training was stopped. Go on with: medad-serve train --resume {run}" in said
    assert "Traceback" not in said


def test_the_last_epoch_is_told_however_short(cq500: Path, tmp_path: Path) -> None:
    run = create_run(resolve("ae", f"cq500:{cq500}", None, ["train.max_epochs=2", *HELD_OUT]), tmp_path)
    lines: list[str] = []
    fit(run, run.prepared(), lines.append)
    assert [line for line in lines if line.startswith("epoch 2: train/loss")]


def test_a_damaged_checkpoint_starts_training_over(cq500: Path, tmp_path: Path) -> None:
    run = create_run(resolve("ae", f"cq500:{cq500}", None, QUICK), tmp_path)
    (run.path / "last.ckpt").write_bytes(b"PK\x03\x04 cut short")
    fit(run, run.prepared())
    assert len(_rows(run.path)) == 1


def test_a_failed_write_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    fit_module.WholeCheckpoints().save_checkpoint({"epoch": 1}, path)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="No space"):
        fit_module.WholeCheckpoints().save_checkpoint({"epoch": 2}, path)
    assert torch.load(path, weights_only=True) == {"epoch": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_files_that_fail_are_counted_before_training(cq500: Path, tmp_path: Path) -> None:
    import shutil

    data = Path(shutil.copytree(cq500, tmp_path / "data"))
    run = create_run(resolve("ae", f"cq500:{data}", None, HELD_OUT), tmp_path / "runs")
    for patient in sorted(run.split.patients("calibration"))[:-1]:
        for file in next(data.glob(f"{patient} *")).rglob("*.dcm"):
            file.write_bytes(b"no scan")
    with pytest.raises(MedadError, match="takes 4 healthy patients to calibrate, 1 are usable"):
        fit(run, run.prepared())


def test_what_is_no_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(MedadError, match="is no run"):
        open_run(tmp_path)


def test_validation_may_be_rarer_than_epochs(cq500: Path, tmp_path: Path) -> None:
    more = ["train.max_epochs=5", "train.validate_every=2", "train.scheduler=plateau"]
    run = create_run(resolve("ae", f"cq500:{cq500}", None, [*HELD_OUT, *more]), tmp_path)
    fit(run, run.prepared())
    assert [int(r["epoch"]) for r in _rows(run.path)] == [1, 3]
    assert steps_of_best(run.path) % 2 == 0
    short = create_run(resolve("ae", f"cq500:{cq500}", None, [*QUICK, "train.validate_every=9"]), tmp_path)
    fit(short, short.prepared())
    assert [int(r["epoch"]) for r in _rows(short.path)] == [0]
