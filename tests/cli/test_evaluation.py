from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from medad_serve.cli.main import cli


def _invoke(*arguments: object) -> str:
    done = CliRunner().invoke(cli, [str(a) for a in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_tables_are_printed_and_the_file_is_named(run_path: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["evaluate", str(run_path), "--out", str(tmp_path / "m.json")])
    assert done.exit_code == 0
    assert "AUROC" in done.stdout
    assert "baseline: mean" in done.stdout
    assert str(tmp_path / "m.json") in done.stderr
    assert (tmp_path / "m-report.html").is_file()


def test_several_data_sets_are_one_json_by_data(artifact: Path, cq500: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(artifact.parent, tmp_path / "run"))
    sources = [f"cq500:{cq500}", f"cq500:{shutil.copytree(cq500, tmp_path / 'other')}"]
    found = json.loads(_invoke("evaluate", run / "artifact", "--data", sources[0], "--data", sources[1], "--json"))
    assert list(found) == sources
    assert found[sources[0]]["slice"]["auroc"] == found[sources[1]]["slice"]["auroc"]
    one = json.loads(_invoke("evaluate", run / "artifact", "--data", sources[0], "--json"))
    assert one["slice"] == found[sources[0]]["slice"]


def test_one_file_cannot_hold_several(run_path: Path, tmp_path: Path) -> None:
    arguments = ["evaluate", str(run_path), "--data", "cq500:a", "--data", "cq500:b", "--out", str(tmp_path / "m.json")]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 2
    assert "name one --data" in done.output


def _domain(root: Path, level: int) -> str:
    rng = np.random.default_rng(level)
    for place, count in {"train/good": 40, "test/good": 6, "test/fault": 6}.items():
        (root / place).mkdir(parents=True)
        for number in range(count):
            image = rng.normal(level, 8, (32, 32))
            if "fault" in place:
                image[8:20, 8:20] += 60
            assert cv2.imwrite(str(root / place / f"{number:03}.png"), np.clip(image, 0, 255).astype(np.uint8))
    return f"mvtec:{root}"


FAST = (
    "train.max_epochs=1", "settings.hidden_dim=8", "prep.size=[32,32]", "prep.window=null", "prep.foreground=null",
    "input.modalities=[]", "input.body_parts=[]", "calibration.policy=specificity=0.8", "device=cpu",
)  # fmt: skip


def test_training_on_the_first_of_several_reports_each(tmp_path: Path) -> None:
    sources = [_domain(tmp_path / "north", 60), _domain(tmp_path / "south", 120)]
    data = [part for source in sources for part in ("--data", source)]
    printed = _invoke("train", "ae", *FAST, *data, "--runs", tmp_path / "runs")
    assert [line.split()[:3] for line in printed.splitlines() if line.startswith("mvtec:")] == [
        ["mvtec:north", "6", "6"],
        ["mvtec:south", "6", "6"],
    ]
    run = next((tmp_path / "runs" / "ae").iterdir())
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["data"], config["report_on"]) == (sources[0], [sources[1]])
    assert len(list(run.glob("metrics*.json"))) == 2
    again = _invoke("evaluate", run)
    assert "mvtec:south" in again
    assert len(json.loads(_invoke("evaluate", run, "--json"))) == 2


@pytest.mark.parametrize("folds", [[], ["--folds", "all"]])
def test_what_cannot_be_reported_on_is_refused_before_training(tmp_path: Path, folds: list[str]) -> None:
    source = _domain(tmp_path / "north", 60)
    arguments = ["train", "ae", *FAST, "--data", source, "--data", f"mvtec:{tmp_path / 'none'}", *folds]
    done = CliRunner().invoke(cli, [*arguments, "--runs", str(tmp_path / "runs")])
    assert done.exit_code != 0
    assert ("name one --data" if folds else "is not a folder") in f"{done.output}{done.exception}"
    assert not (tmp_path / "runs").exists()
