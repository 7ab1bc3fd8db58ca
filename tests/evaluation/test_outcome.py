from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import matplotlib.image
import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_score, recall_score, roc_auc_score

from medad_serve.evaluation import Subject, evaluate_all, full_size, measure, plots, score, study
from medad_serve.evaluation.measures import figures_table
from medad_serve.evaluation.outcome import _companions, _evaluate
from medad_serve.training.config import resolve
from medad_serve.training.fit import fit
from medad_serve.training.run import create_run

Make = Callable[..., Subject]
EVERYTHING = ("score", "heatmap", "severity", "probability", "reconstruction")


def test_the_table_holds_every_level_class_and_policy(make_subject: Make) -> None:
    subject = make_subject()
    scored = score(subject)
    rows = list(csv.DictReader(figures_table(subject, scored).splitlines()))
    policies = set(subject.policies())
    assert len(policies) > 1
    assert {(r["level"], r["class"]) for r in rows} == {
        (level, name) for level in ("slice", "patient") for name in ("", "crack", "hole")
    }
    assert len(rows) == 6 * len(policies)
    row = next(r for r in rows if r["class"] == "" and r["level"] == "slice" and r["policy"] == "specificity=0.9")
    labels, called = scored.items.labels, scored.items.scores >= float(row["cutoff"])
    tn, fp, fn, tp = confusion_matrix(labels, called).ravel()
    assert [int(row[n]) for n in ("tp", "fp", "tn", "fn")] == [tp, fp, tn, fn]
    assert (row["normal"], row["abnormal"], row["patients"]) == ("6", "10", "16")
    for name, figure in {
        "accuracy": accuracy_score(labels, called),
        "f1": f1_score(labels, called),
        "precision": precision_score(labels, called),
        "recall": recall_score(labels, called),
        "specificity": recall_score(labels, called, pos_label=0),
        "auroc": roc_auc_score(labels, scored.items.scores),
    }.items():
        assert float(row[name]) == pytest.approx(figure, abs=1e-5), name


def test_undetermined_figures_are_empty_cells(make_subject: Make) -> None:
    subject = make_subject()
    scored = score(subject)
    scored.items.labels[:] = 0
    row = next(csv.DictReader(figures_table(subject, scored).splitlines()))
    assert row["auroc"] == row["recall"] == row["f1"] == ""
    assert row["specificity"] != ""


def test_plots_follow_what_was_found(make_subject: Make, tmp_path: Path) -> None:
    for outputs, names in (
        (("score", "heatmap"), {"confusion"}),
        (EVERYTHING, {"confusion", "reliability", "severity"}),
    ):
        subject = make_subject(outputs)
        scored = score(subject)
        studied = study(subject, scored)
        metrics = measure(subject, scored, subject.policy, studied)
        files = [file for _, file in plots(subject, scored, studied, metrics, tmp_path.joinpath)]
        assert {f.stem for f in files} == names
        assert all(matplotlib.image.imread(f).std() > 0 for f in files)


def test_maps_have_the_pixels_of_the_file_and_the_outline_of_the_truth(make_subject: Make) -> None:
    subject = make_subject(EVERYTHING)
    maps = full_size(subject, score(subject), subject.policy)
    assert maps is not None
    assert maps.head == ["image", "reconstruction", "residual", "heatmap"]
    kinds = [caption.split("\n")[0] for caption, _ in maps.rows]
    assert kinds == ["crack", "crack", "hole", "hole", "normal", "normal"]
    for caption, images in maps.rows:
        rows, columns = (int(n) for n in caption.split("\n")[-1].removesuffix(" px").split(" x "))
        decoded = [cv2.imdecode(np.frombuffer(i, np.uint8), cv2.IMREAD_COLOR).astype(int) for i in images]
        assert [d.shape for d in decoded] == [(rows, columns, 3)] * 4
        green = decoded[0][..., 1] - decoded[0][..., 2] > 60
        kind, place = caption.split("\n")[0], rows - 50
        marked = kind != "normal" and (kind, place) != ("crack", 4)  # which has no mask
        assert green.any() == marked
        if marked:  # a line about the square that begins at (10, 20)
            assert green[10 : 16 + place, 20].mean() > 0.8
            assert not green[10 + (6 + place) // 2, 20 + (6 + place) // 2]


def test_large_files_are_shown_smaller(make_subject: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medad_serve.evaluation.maps.LARGEST", 35)
    subject = make_subject()
    maps = full_size(subject, score(subject), subject.policy)
    assert maps is not None
    shapes = [cv2.imdecode(np.frombuffer(i, np.uint8), cv2.IMREAD_COLOR).shape for _, row in maps.rows for i in row]
    assert max(max(shape) for shape in shapes) == 35


def test_everything_lies_beside_the_metrics(make_subject: Make, tmp_path: Path) -> None:
    metrics, target = _evaluate(make_subject(EVERYTHING), tmp_path, None, tmp_path / "metrics.json")
    assert json.loads(target.read_text()) == metrics
    assert {p.name for p in tmp_path.iterdir()} == {
        "metrics.json", "metrics.png", "figures.csv", "confusion.png", "reliability.png", "severity.png", "report.html",
    }  # fmt: skip
    text = (tmp_path / "report.html").read_text()
    for words in ("pixel AUROC", "Brier", "Spearman", "Maps on the pixels", "image/jpeg"):
        assert words in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("metrics.json", "figures.csv"),
        ("artifact.metrics-1a.json", "artifact.figures-1a.csv"),
        ("m.json", "m-figures.csv"),
    ],
)
def test_companions_are_named_after_the_metrics(target: str, name: str) -> None:
    assert _companions(Path("x") / target)("figures.csv") == Path("x") / name


FAST = (
    "train.max_epochs=1", "settings.hidden_dim=8", "prep.size=[32,32]", "prep.window=null", "prep.foreground=null",
    "input.modalities=[]", "input.body_parts=[]", "calibration.policy=specificity=0.8", "device=cpu",
)  # fmt: skip


def test_a_run_reports_on_its_own_data_and_on_others(tiles: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(tiles, tmp_path / "other"))
    shutil.rmtree(other / "test" / "crack")
    shutil.rmtree(other / "ground_truth" / "crack")
    (other / "severity.csv").unlink()
    config = resolve("ae", f"mvtec:{tiles}", None, FAST, [f"mvtec:{other}"])
    assert config.report_on == (f"mvtec:{other}",)
    run = create_run(config, tmp_path / "runs")
    fit(run, run.prepared())
    own, others = evaluate_all(run.path)
    assert (own.file.name, own.metrics["split"]) == ("metrics.json", "test")
    assert own.metrics["slice"]["abnormal"] == 10
    assert own.metrics["pixel"]["images"] == 15
    assert (others.data, others.metrics["split"]) == (f"mvtec:{other}", "unseen")
    # Those of its test: tiles that trained the model, or could train another, do not count.
    assert (others.metrics["slice"]["normal"], others.metrics["slice"]["abnormal"]) == (6, 5)
    assert others.file.name.startswith("metrics-")
    alone = evaluate_all(run.path, [f"mvtec:{other}"])
    assert [o.metrics["slice"] for o in alone] == [others.metrics["slice"]]
