from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medad_serve.ablation import Ablation, Plan, make_plan
from medad_serve.ablation import study as study_module
from medad_serve.ablation.table import FIGURES, write_ablation
from medad_serve.cli.main import main
from medad_serve.data.phantoms.hdmap import write_hdmap
from medad_serve.errors import MedadError
from medad_serve.training.run import DONE

GROUPS = """
model: ae
fixed: [train.max_epochs=2, settings.hidden_dim=16, calibration.policy=specificity=0.8]
groups:
  rate:
    title: Learning rate
    variants:
      slow: [train.learning_rate=1.0e-4]
      base: []
      broken: [settings.hidden_dim=0]
  carry:
    transfer: true
"""


@pytest.fixture(scope="module")
def other(make_slice: Callable[..., Any], make_ct: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Class folders of other heads: 25 healthy, 6 bleeding."""
    root = tmp_path_factory.mktemp("other")
    for number in range(31):
        bleeding = number >= 25
        folder = root / ("bleed" if bleeding else "normal")
        folder.mkdir(exist_ok=True)
        hu = make_slice(1000 + number, bleeding=bleeding)
        make_ct(hu, f"Q{number}").save_as(folder / f"Q{number}_0.dcm")
    return f"folders:{root}"


@pytest.fixture(scope="module")
def plan(cq500: Path, other: str, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    path = tmp_path_factory.mktemp("groups") / "groups.yaml"
    path.write_text(GROUPS)
    return make_plan("ae", [f"cq500:{cq500}", other], groups=str(path))


@pytest.fixture(scope="module")
def made(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[study_module.Row]]:
    """A finished ablation: its folder and rows; do not change it."""
    ablation = Ablation(plan, tmp_path_factory.mktemp("runs"))
    rows = ablation.run()
    write_ablation(plan, rows, ablation.folder)
    return ablation.folder, rows


def _table(folder: Path) -> list[dict[str, str]]:
    with (folder / "ablation.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_has_a_line_for_each_variant_and_data_set(made, cq500: Path, other: str) -> None:
    folder, _ = made
    rows = _table(folder)
    assert [(r["group"], r["variant"], r["state"]) for r in rows] == [
        ("rate", "slow", "done"),
        ("rate", "base", "done"),
        ("rate", "broken", "failed"),
        *[("carry", f"trained on {cq500.name}", "done")] * 2,
        *[("carry", f"trained on {Path(other).name}", "done")] * 2,
    ]
    pairs = [(r["trained_on"], r["reported_on"]) for r in rows if r["group"] == "carry"]
    a, b = f"cq500:{cq500}", other
    assert pairs == [(a, a), (a, b), (b, b), (b, a)]
    assert "hidden_dim" in rows[2]["error"]
    assert rows[0]["settings"] == "train.learning_rate=1.0e-4"


def test_figures_are_those_of_the_evaluation(made) -> None:
    folder, _ = made
    for row in _table(folder):
        if row["state"] == "failed":
            continue
        assert 0 <= float(row["image_auroc_low"]) <= float(row["image_auroc"]) <= float(row["image_auroc_high"]) <= 1
        assert float(row["training_seconds"]) > 0
        assert row["epochs"] == "2"
        assert not row["severity_mae"]  # an autoencoder tells none
        metrics = [json.loads(p.read_text()) for p in (folder / row["run"]).glob("metrics*.json")]
        assert float(row["image_auroc"]) in [m["slice"]["auroc"]["value"] for m in metrics]


def test_variants_that_are_alike_share_a_run(made) -> None:
    folder, _ = made
    runs = {(r["group"], r["variant"], r["reported_on"]): r["run"] for r in _table(folder) if r["run"]}
    assert len(set(runs.values())) == 3
    base = next(run for (group, name, _), run in runs.items() if name == "base")
    assert sum(run == base for run in runs.values()) == 3  # itself, and the transfer from the first data set


def test_the_report_shows_every_group(made) -> None:
    folder, _ = made
    page = (folder / "report.html").read_text()
    assert "Learning rate" in page
    assert "failed: " in page
    assert page.count("data:image/png") == 2
    assert (folder / "rate.png").stat().st_size > 5000
    assert (folder / "carry.png").stat().st_size > 5000


def test_called_again_it_trains_and_measures_nothing(made, plan: Plan, monkeypatch) -> None:
    folder, rows = made

    def never(*_: object, **__: object) -> None:
        raise AssertionError

    for name in ("fit", "create_run", "evaluate_all"):
        monkeypatch.setattr(study_module, name, never)
    again = Ablation(plan, folder.parent).run()
    assert [(r.run, r.metrics, r.seconds) for r in again] == [(r.run, r.metrics, r.seconds) for r in rows]


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the evaluation out, which is not what a test is about."""
    monkeypatch.setattr(Ablation, "_measured", lambda _, __, variant, ___: {s: {} for s in variant.report_on})


@pytest.mark.usefixtures("unmeasured")
def test_a_killed_ablation_goes_on_in_its_run(plan: Plan, tmp_path: Path, monkeypatch) -> None:
    class Killed(BaseException):
        pass

    plain = study_module.fit

    def killed(run, data, say, callbacks):
        plain(run, data, say, callbacks=callbacks)
        (run.path / DONE).unlink()  # as a kill before the end leaves it
        raise Killed

    one = Plan(plan.model, {"rate": "Rate"}, plan.variants[:1], (), plan.base)
    with monkeypatch.context() as patch:
        patch.setattr(study_module, "fit", killed)
        with pytest.raises(Killed):
            Ablation(one, tmp_path).run()
    (run,) = (tmp_path / "ae-ablation" / "ae").iterdir()
    before = json.loads((run / "ablation.json").read_text())["seconds"]
    (row,) = Ablation(one, tmp_path).run()
    assert row.run == run
    assert row.seconds is not None
    assert row.seconds >= before > 0


@pytest.mark.usefixtures("unmeasured")
def test_a_variant_that_fails_in_training_costs_no_other(plan: Plan, tmp_path: Path, monkeypatch) -> None:
    plain = study_module.fit

    def fails(run, data, say, callbacks):
        if run.config.train.learning_rate == 1e-4:
            raise RuntimeError("of torch's own")
        plain(run, data, say, callbacks=callbacks)

    monkeypatch.setattr(study_module, "fit", fails)
    two = Plan(plan.model, {"rate": "Rate"}, plan.variants[:2], (), plan.base)
    rows = Ablation(two, tmp_path).run()
    assert [row.error for row in rows] == ["internal fault (RuntimeError)", ""]


def test_a_stop_by_the_user_is_no_failure(plan: Plan, tmp_path: Path, monkeypatch) -> None:
    def stopped(run, data, say, callbacks):
        callbacks[0].on_exception(None, None, KeyboardInterrupt())
        raise MedadError("training was stopped")

    monkeypatch.setattr(study_module, "fit", stopped)
    with pytest.raises(MedadError, match=r"the ablation was stopped.*go on"):
        Ablation(plan, tmp_path).run()


def test_one_process_at_a_time_works_in_a_folder(plan: Plan, tmp_path: Path) -> None:
    ablation = Ablation(plan, tmp_path)
    with ablation._alone(), pytest.raises(MedadError, match="an ablation is running"):
        Ablation(plan, tmp_path).run()


@pytest.mark.slow
def test_severity_is_measured_on_the_same_faults_for_every_variant(tmp_path: Path, monkeypatch) -> None:
    write_hdmap(tmp_path / "maps", healthy=40, abnormal=4)
    tiny = ("prep.size=[64,64]", "settings.faults.patch_width_range=[5,20]", "settings.score_window=5")
    tiny = (*tiny, "settings.reconstructive_width=4", "settings.discriminative_width=4", "train.max_epochs=1")
    plan = make_plan("draem", [f"mvtec:{tmp_path / 'maps'}"], overrides=tiny, only=("generator",))
    chosen = tuple(v for v in plan.variants if v.name in ("cut-paste", "Perlin", "Perlin, plain DRAEM"))
    kinds: list[str] = []
    plain = study_module.make_faults

    def spy(subject: Any, scored: Any, model: Any) -> Any:
        kinds.append(model.settings.faults.kind)
        return plain(subject, scored, model)

    monkeypatch.setattr(study_module, "make_faults", spy)
    base, perlin, without = Ablation(replace(plan, variants=chosen), tmp_path / "runs").run()
    assert not [row.error for row in (base, perlin, without) if row.error]
    assert base.metrics["common"] == base.metrics["synthetic"]
    assert kinds == ["cut_paste", "cut_paste"]  # the base's, not the variants' own
    assert perlin.metrics["common"] != perlin.metrics["synthetic"]
    assert perlin.metrics["common"]["severity"]["mae"]["value"] > 0
    assert "severity" not in without.metrics["common"]
    assert without.parameters < base.parameters


def test_the_command_prints_the_table_and_fails_at_the_end(
    made, cq500: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    folder, _ = made
    groups = tmp_path / "groups.yaml"
    groups.write_text(GROUPS)
    command = ["medad-serve", "ablate", "ae", "--groups", str(groups)]
    command += ["--data", f"cq500:{cq500}", "--runs", str(folder.parent), "--only", "rate"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 1
    done = capsys.readouterr()
    assert done.err.strip().splitlines()[-1].startswith("Error: 1 of 3 variants failed")
    assert "Learning rate" in done.out
    assert done.out.strip().endswith("report.html")
    assert f"run {folder}" in done.err
    assert "is there" in done.err


def test_figures_have_names_of_their_own() -> None:
    assert len({f.key for f in FIGURES}) == len(FIGURES)
    assert len({f.title for f in FIGURES}) == len(FIGURES)
