from __future__ import annotations

import csv
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from click.testing import CliRunner, Result
from optuna.trial import TrialState

from medad_serve.cli.sweep import sweep as command
from medad_serve.errors import MedadError
from medad_serve.training import sweep as sweep_module
from medad_serve.training import sweep_plan
from medad_serve.training.run import open_run
from medad_serve.training.sweep import Sweep, objective_value
from medad_serve.training.sweep_plan import make_plan

SMALL = ("settings.hidden_dim=16", "calibration.policy=specificity=0.8", "calibration.method=out_of_fold")
RATES = "train.learning_rate: {low: 1.0e-5, high: 1.0e-1, log: true}\n"


@pytest.fixture
def space(tmp_path: Path) -> Callable[[str], str]:
    def write(text: str = RATES) -> str:
        (tmp_path / "space.yaml").write_text(text)
        return str(tmp_path / "space.yaml")

    return write


def _plan(cq500: Path, space: str, *more: str, **options):
    return make_plan("ae", space, data=f"cq500:{cq500}", overrides=(*SMALL, *more), **options)


def _go_on(plan, runs: Path, **options) -> list[optuna.trial.FrozenTrial]:
    """Run a sweep to its end and return its trials."""
    sweep = Sweep(plan, runs, **options)
    with sweep.opened() as study:
        sweep.run(study)
        return study.trials


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Replace training by a formula of the learning rate, best at 1e-3; the rates in order of training."""
    rates: list[float] = []

    def fake(run, data, say, *, callbacks, folds):
        assert not folds
        rate = run.config.train.learning_rate
        rates.append(rate)
        loss = (math.log10(rate) + 3) ** 2
        (run.path / "metrics.csv").write_text(f"epoch,val/loss\n0,{loss + 1}\n1,{loss}\n")

    monkeypatch.setattr(sweep_module, "fit", fake)
    return rates


def _invoke(cq500: Path, tmp_path: Path, space: str, *more: str) -> Result:
    options = ["--space", space, "--data", f"cq500:{cq500}", "--runs", str(tmp_path / "runs"), *more]
    return CliRunner().invoke(command, ["ae", *options, *SMALL, "train.max_epochs=1"], catch_exceptions=False)


def test_a_study_goes_on_and_trains_no_trial_twice(cq500: Path, tmp_path: Path, space) -> None:
    first = _invoke(cq500, tmp_path, space(), "--trials", "3")
    folder = tmp_path / "runs" / "ae-sweep"
    runs = sorted((folder / "ae").iterdir())
    stamps = {p: p.stat().st_mtime_ns for run in runs for p in run.iterdir()}
    assert len(runs) == 3
    second = _invoke(cq500, tmp_path, space(), "--trials", "5")
    assert len(list((folder / "ae").iterdir())) == 5
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps
    assert first.stderr.count("trial ") == 4  # three of them and the best
    assert [f"trial {n}: train.learning_rate=" in second.stderr for n in range(6)] == [False] * 3 + [True] * 2 + [False]
    with (folder / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["complete"] * 5
    for row in rows:
        run = open_run(folder / row["run"])
        assert run.config.train.learning_rate == float(row["train.learning_rate"])
        assert float(row["val/loss"]) == objective_value(run, "val/loss")
        assert (run.path / "finished").is_file()
        assert not list(run.path.glob("fold_*"))
    best = min(rows, key=lambda row: float(row["val/loss"]))
    assert second.stdout.splitlines()[-1] == str(folder / best["run"])
    for name in ("history.png", "slices.png", "importance.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("method", ["random", "bayes"])
def test_a_resumed_study_draws_what_one_at_once_draws(cq500: Path, tmp_path: Path, space, trained, method) -> None:
    for trials in (2, 4):
        _go_on(_plan(cq500, space(), method=method, trials=trials), tmp_path / "resumed")
    resumed, trained[:] = list(trained), []
    _go_on(_plan(cq500, space(), method=method, trials=4), tmp_path / "at_once")
    assert resumed == trained
    assert len(set(trained)) == 4


def test_a_grid_visits_each_point_once_even_when_it_is_stopped(
    cq500: Path, tmp_path: Path, space, trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = _plan(cq500, space("train.learning_rate: [1e-4, 1e-3, 1e-2]\nseed: {low: 0, high: 1}\n"), method="grid")
    whole = sweep_module.fit

    def stopped(run, *args, **options):
        if len(trained) == 2:
            monkeypatch.setattr(sweep_module, "fit", whole)
            raise KeyboardInterrupt
        whole(run, *args, **options)

    monkeypatch.setattr(sweep_module, "fit", stopped)
    with pytest.raises(KeyboardInterrupt):
        _go_on(plan, tmp_path)
    assert len(trained) == 2
    trials = _go_on(plan, tmp_path)
    done = [tuple(t.params.values()) for t in trials if t.state == TrialState.COMPLETE]
    assert sorted(done) == [(rate, seed) for rate in (1e-4, 1e-3, 1e-2) for seed in (0, 1)]
    assert [t.state for t in trials].count(TrialState.FAIL) == 1
    assert len(trained) == 6
    assert _go_on(plan, tmp_path)[-1].number == trials[-1].number
    assert len(trained) == 6


def test_a_bad_trial_is_pruned_in_training(cq500: Path, tmp_path: Path, space, monkeypatch) -> None:
    monkeypatch.setattr(sweep_plan, "STARTUP_TRIALS", 1)
    sweep = Sweep(_plan(cq500, space(), "train.max_epochs=10", trials=2), tmp_path)
    with sweep.opened() as study:
        for rate in (1e-2, 1.1e-5):
            study.enqueue_trial({"train.learning_rate": rate})
        sweep.run(study)
        good, bad = study.trials
    assert (good.state, bad.state) == (TrialState.COMPLETE, TrialState.PRUNED)
    epochs = [len(t.intermediate_values) for t in (good, bad)]
    assert epochs[0] == 10
    assert 1 < epochs[1] < 10  # a tenth of the epochs is left alone
    assert bad.user_attrs["pruned"] == epochs[1] - 1
    rows = (sweep.folder / bad.user_attrs["run"] / "metrics.csv").read_text().splitlines()
    assert len(rows) == 1 + epochs[1]


@pytest.mark.slow
def test_a_killed_trial_goes_on_in_its_run(cq500: Path, tmp_path: Path, space) -> None:
    settings = [*SMALL, "train.max_epochs=25", "train.patience=25", "train.checkpoint_seconds=0"]
    arguments = ["--space", space(), "--data", f"cq500:{cq500}", "--trials=1", f"--runs={tmp_path}"]
    main = [sys.executable, "-m", "medad_serve.cli.main", "sweep", "ae", *arguments, *settings]
    process = subprocess.Popen(main, stderr=subprocess.DEVNULL, env=dict(os.environ))
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        logs = list(tmp_path.glob("ae-sweep/ae/*/metrics.csv"))
        if logs and logs[0].read_text().count("\n") > 3 and (logs[0].parent / "last.ckpt").is_file():
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (logs[0].parent / "finished").exists(), "the trial ended before it was killed"
    plan = make_plan("ae", space(), data=f"cq500:{cq500}", overrides=tuple(settings), trials=1)
    killed, again = _go_on(plan, tmp_path)
    assert (killed.state, again.state) == (TrialState.FAIL, TrialState.COMPLETE)
    assert again.params == killed.params
    assert again.user_attrs["retry_of"] == 0
    assert [p.name for p in (tmp_path / "ae-sweep" / "ae").iterdir()] == [logs[0].parent.name]
    rows = logs[0].read_text().splitlines()[1:]
    assert [int(row.split(",")[0]) for row in rows] == list(range(25))
    assert sorted(again.intermediate_values) == list(range(25))


def test_a_trial_that_kills_every_process_is_given_up(cq500: Path, tmp_path: Path, space, trained) -> None:
    sweep = Sweep(_plan(cq500, space(), trials=2), tmp_path)
    for _ in range(sweep_module.KILLS):
        with sweep.opened() as study:
            sweep_module._take_up(study, lambda _: None)
            study.ask({d.key: d.distribution for d in sweep.plan.space.dimensions})  # and nobody tells
    trials = _go_on(sweep.plan, tmp_path)
    assert [t.state.name for t in trials] == ["FAIL", "FAIL", "FAIL", "COMPLETE"]
    assert trials[2].user_attrs["error"] == "the process was killed 3 times in this trial"
    assert trials[0].params == trials[1].params == trials[2].params != trials[3].params


def test_failed_trials_do_not_end_a_sweep_that_works(
    cq500: Path, tmp_path: Path, space, trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sweep_module.fit

    def picky(run, *args, **options):
        if run.config.train.learning_rate == 1e-2:
            raise MedadError("this rate is not liked")
        whole(run, *args, **options)

    monkeypatch.setattr(sweep_module, "fit", picky)
    trials = _go_on(_plan(cq500, space("train.learning_rate: [1e-4, 1e-3, 1e-2]"), method="grid"), tmp_path)
    assert sorted(t.state.name for t in trials) == ["COMPLETE", "COMPLETE", "FAIL"]
    text = (tmp_path / "ae-sweep" / "trials.csv").read_text()
    assert text.count("failed") == 1
    assert text.count("this rate is not liked") == 1
    seeds = space("train.learning_rate: [1e-2]\nseed: [0, 1, 2, 3]")
    with pytest.raises(MedadError, match="3 trials failed and none succeeded: this rate is not liked"):
        _go_on(_plan(cq500, seeds, method="grid"), tmp_path, name="hopeless")


def test_data_that_no_trial_can_read_costs_no_point_of_the_grid(cq500: Path, tmp_path: Path, space, trained) -> None:
    data = Path(shutil.copytree(cq500, tmp_path / "data"))
    grid = space("train.learning_rate: [1e-4, 1e-3]")
    plan = make_plan("ae", grid, data=f"cq500:{data}", overrides=SMALL, method="grid")
    (data / "reads.csv").rename(data / "away")
    with pytest.raises(MedadError, match=r"reads\.csv cannot be read"):
        _go_on(plan, tmp_path)
    (data / "away").rename(data / "reads.csv")
    _go_on(plan, tmp_path)
    assert sorted(trained) == [1e-4, 1e-3]


def test_nothing_is_written_for_a_setting_that_is_wrong(cq500: Path, tmp_path: Path, space) -> None:
    for text, fault in (
        ("train.batch_sise: [1]", "no one setting 'train.batch_sise'. Did you mean train.batch_size?"),
        ("train.batch_size: [8, large]", "train.batch_size: Input should be a valid integer"),
        ("train.learning_rate: {low: -1.0, high: 1.0}", "train.learning_rate: Input should be greater than 0"),
        ("settings.latent_dim: {low: 0, high: 4}", "latent_dim: Input should be greater than or equal to 1"),
        ("settings.hidden_dim: [8]", "settings.hidden_dim is searched and given"),
    ):
        with pytest.raises(MedadError) as error:
            _invoke(cq500, tmp_path, space(text))
        assert fault in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(MedadError, match="'loss' is no metric of training"):
        _plan(cq500, space(), metric="loss")
    with pytest.raises(MedadError, match="has no end of values for a grid"):
        _plan(cq500, space(), method="grid")
    assert not (tmp_path / "runs").exists()


def test_an_unknown_metric_fails_in_the_first_epoch(cq500: Path, tmp_path: Path, space) -> None:
    plan = _plan(cq500, space("seed: [0, 1, 2]"), "train.max_epochs=50", method="grid", metric="val/f1")
    with pytest.raises(MedadError, match="training logs no val/f1.*val/auroc"):
        _go_on(plan, tmp_path)


def test_another_study_is_not_gone_on_with(cq500: Path, tmp_path: Path, space, trained) -> None:
    _go_on(_plan(cq500, space(), trials=1), tmp_path)
    for other in (
        _plan(cq500, space(), "train.max_epochs=9"),
        _plan(cq500, space("train.learning_rate: [1e-3]")),
        _plan(cq500, space(), metric="val/auroc"),
    ):
        with pytest.raises(MedadError, match=r"was begun with another .*--study"):
            _go_on(other, tmp_path)
    assert len(_go_on(_plan(cq500, space(), "train.max_epochs=9", trials=1), tmp_path, name="longer")) == 1
    with pytest.raises(MedadError, match="no name for a study"):
        Sweep(_plan(cq500, space()), tmp_path, "../out")


def test_a_study_is_run_by_one_process_at_a_time(cq500: Path, tmp_path: Path, space) -> None:
    sweep = Sweep(_plan(cq500, space()), tmp_path)
    with sweep.opened(), pytest.raises(MedadError, match="a sweep is running in"), sweep.opened():
        pass
    with sweep.opened():
        pass


def test_the_objective_is_the_metric_at_the_best_checkpoint(run_path: Path, tmp_path: Path) -> None:
    run = open_run(run_path)
    other = type(run)(tmp_path, run.config, run.split)
    metrics = tmp_path / "metrics.csv"
    metrics.write_text("epoch,val/auroc,val/loss\n0,0.9,3\n1,0.6,1\n2,0.7,nan\n3,0.8,2\n")
    assert objective_value(other, "val/auroc") == 0.6  # not the 0.9 of a checkpoint that nobody keeps
    assert objective_value(other, "val/loss") == 1
    metrics.write_text("epoch,val/auroc,val/loss\n0,0.9,nan\n")
    with pytest.raises(MedadError, match="val/loss was never finite"):
        objective_value(other, "val/auroc")
    metrics.write_text("epoch,val/auroc,val/loss\n0,nan,1\n")
    with pytest.raises(MedadError, match="val/auroc is not finite at the best epoch"):
        objective_value(other, "val/auroc")


def test_what_the_space_says_of_how_is_taken_unless_the_command_says_it(cq500: Path, space) -> None:
    text = """
method: random
metric: {name: val_auroc, goal: maximize}
run_cap: 7
early_terminate: {type: hyperband, min_iter: 2, eta: 2}
parameters: {learning_rate: {values: [1e-3, 1e-4]}, batch_size: {value: 8}}
"""
    plan = _plan(cq500, space(text), "train.max_epochs=8")
    assert (plan.method, plan.metric, plan.mode, plan.prune, plan.trials) == (
        "random", "val/auroc", "max", "hyperband", 7
    )  # fmt: skip
    assert plan.base.train.batch_size == 8
    assert isinstance(plan.pruner(), optuna.pruners.HyperbandPruner)
    other = _plan(cq500, space(text), method="grid", metric="val/loss", prune="none", trials=3)
    assert (other.method, other.metric, other.mode, other.trials) == ("grid", "val/loss", "min", 3)
    assert isinstance(other.pruner(), optuna.pruners.NopPruner)
    assert _plan(cq500, space("train.learning_rate: [1e-3, 1e-4]"), method="grid").trials == 2
