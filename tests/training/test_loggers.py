from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest

from medad_serve.errors import MedadError
from medad_serve.training import loggers
from medad_serve.training.config import resolve
from medad_serve.training.fit import fit
from medad_serve.training.run import create_run

QUICK = ["train.max_epochs=2", "settings.hidden_dim=16", "calibration.policy=specificity=0.8", "split.folds=2"]
QUICK += ["calibration.method=out_of_fold"]


def test_tensorboard_holds_every_epoch_and_the_hyperparameters(cq500: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = create_run(resolve("ae", f"cq500:{cq500}", None, [*QUICK, "logger=tensorboard", "fold=1"]), tmp_path)
    fit(run, run.prepared())
    folders = {p.parent for p in tmp_path.rglob("events.out.*")}
    assert folders == {run.path / "tensorboard" / "ae_fold1"}  # models of calibration log nothing
    events = EventAccumulator(str(*folders)).Reload()
    rows = (run.path / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("val/auroc")
    kept = [event.value for event in events.Scalars("val/auroc")]
    assert kept == pytest.approx([float(r.split(",")[column]) for r in rows[1:]])
    assert len(events.Scalars("train/loss")) == 2
    assert "hidden_dim" in (run.path / "tensorboard" / "ae_fold1" / "hparams.yaml").read_text()
    assert all(str(cq500).encode() not in p.read_bytes() for p in (run.path / "tensorboard").rglob("*") if p.is_file())


@pytest.mark.slow
def test_wandb_offline_stays_below_the_run_and_tells_nothing_of_the_data(cq500: Path, tmp_path: Path) -> None:
    for name in ("home", "work", "runs"):
        (tmp_path / name).mkdir()
    command = [sys.executable, "-m", "medad_serve.cli.main", "train", "ae", "--data", f"cq500:{cq500}"]
    env = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "XDG"))}
    env |= {"WANDB_MODE": "offline", "HOME": str(tmp_path / "home"), "USER": "dr_somebody"}
    env["MPLCONFIGDIR"] = matplotlib.get_configdir()  # whose cache of fonts takes long to make
    # Whoever would reach for the network fails.
    env |= dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
    done = subprocess.run(
        [*command, f"--runs={tmp_path / 'runs'}", *QUICK, "logger=wandb"],
        capture_output=True, text=True, cwd=tmp_path / "work", env=env,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "runs" / "ae").iterdir()
    assert list(run.glob("wandb/offline-run-*/run-*.wandb"))
    assert not list((tmp_path / "home").rglob("*"))
    assert not list((tmp_path / "work").iterdir())
    written = b"".join(p.read_bytes() for p in (run / "wandb").rglob("*") if p.is_file())
    assert b"val/auroc" in written
    assert b"hidden_dim" in written
    secrets = (str(cq500), cq500.parent.name, "CQ500CT", "dr_somebody", socket.gethostname())
    assert not [word for word in secrets if word.encode() in written]


def test_two_runs_in_one_process_are_two_wandb_runs(cq500: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    names = []
    for name in ("one", "two"):
        config = resolve("ae", f"cq500:{cq500}", None, [*QUICK, "logger=wandb", f"experiment={name}"])
        with loggers.run_loggers(config, tmp_path / name) as made:
            assert made
            names.append(made[0].experiment.name)
            made[0].log_metrics({"val/loss": 1.0}, 0)
    assert names == ["one", "two"]
    assert all(len(list((tmp_path / name / "wandb").glob("offline-run-*"))) == 1 for name in names)


def test_a_missing_package_is_refused_before_anything_is_written(cq500: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda _: None)
    with pytest.raises(MedadError, match=r"logger=wandb needs .* pip install 'medad-serve\[wandb\]'"):
        resolve("ae", f"cq500:{cq500}", None, ["logger=wandb"])
    resolve("ae", f"cq500:{cq500}", None, [])
