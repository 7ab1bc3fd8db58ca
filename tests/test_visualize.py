from __future__ import annotations

import base64
import io
import re
import shutil
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from medad_serve.calibration import HeldOut, calibrate
from medad_serve.data import Prepared, Sample
from medad_serve.errors import MedadError
from medad_serve.evaluation import Scored, Subject, maps_of, score
from medad_serve.export.graph import EagerRuntime
from medad_serve.models import Family, families
from medad_serve.report import Row
from medad_serve.spec import PrepSpec
from medad_serve.training.run import open_run
from medad_serve.visualize import _grids, _rows, pick, visualize


def _scored(scores: list[float], labels: list[int]) -> Scored:
    patients = tuple(f"p{i}" for i in range(len(scores)))
    held_out = HeldOut(np.array(scores), np.array(labels), patients)
    return Scored(np.arange(len(scores)), held_out, {}, {}, {})


def test_the_highest_the_median_and_the_lowest_of_each_class_are_picked() -> None:
    scored = _scored([5, 1, 4, 2, 3, 10, 30, 20], [0, 0, 0, 0, 0, 1, 1, 1])
    found = [(p.label, p.place, scored.items.scores[p.index]) for p in pick(scored, 6)]
    assert found == [
        (1, "highest", 30), (1, "median", 20), (1, "lowest", 10),
        (0, "highest", 5), (0, "median", 3), (0, "lowest", 1),
    ]  # fmt: skip


def test_of_few_items_none_is_picked_twice() -> None:
    picked = pick(_scored([1, 2, 3], [0, 0, 1]), 12)
    assert sorted(p.index for p in picked) == [0, 1, 2]


def test_one_class_alone_takes_the_whole_count() -> None:
    picked = pick(_scored(list(range(20)), [0] * 20), 12)
    assert [p.index for p in picked] == [19, 18, 17, 16, 11, 10, 9, 8, 3, 2, 1, 0]


def test_maps_are_found_by_shape_whatever_their_names() -> None:
    rng = np.random.default_rng(0)
    item = rng.random((1, 8, 8)).astype(np.float32)
    outputs = {
        "score": np.float32(1),
        "heatmap": rng.random((1, 8, 8)).astype(np.float32),
        "reconstruction": rng.random((1, 8, 8)).astype(np.float32),
        "alignment": np.arange(16, dtype=np.float32).reshape(1, 4, 4),
        "novel": rng.random((1, 8, 8)).astype(np.float32),
        "codes": np.ones((4, 4), np.int64),
        "score_nll": np.float32(2),
    }
    found = maps_of(item, outputs)
    assert list(found) == ["input", "reconstruction", "residual", "alignment (ALM)", "novel", "heatmap"]
    np.testing.assert_array_equal(found["residual"], np.abs(item[0] - outputs["reconstruction"][0]))
    np.testing.assert_array_equal(found["alignment (ALM)"], np.kron(outputs["alignment"][0], np.ones((2, 2))))


def test_a_model_without_reconstruction_and_colour_images_are_shown_too() -> None:
    item = np.random.default_rng(0).random((3, 4, 5)).astype(np.float32)
    found = maps_of(item, {"heatmap": np.zeros((1, 4, 5), np.float32)})
    assert list(found) == ["input", "heatmap"]
    np.testing.assert_array_equal(found["input"], item.transpose(1, 2, 0))


class Planted:
    """Scores a volume by its maximum, and points at it."""

    def run(self, batch: np.ndarray, names: list[str]) -> dict[str, np.ndarray]:
        found = {
            "score": batch.max(axis=(1, 2, 3, 4)),
            "heatmap": batch,
            "reconstruction": np.zeros_like(batch),
            "score_mean": batch.mean(axis=(1, 2, 3, 4)),
        }
        return {name: found[name] for name in names}


def _volumes(count: int = 12) -> tuple[Subject, list[tuple[int, int, int]]]:
    rng = np.random.default_rng(0)
    tensor = rng.random((count, 1, 8, 10, 12)).astype(np.float32)
    places = [tuple(int(rng.integers(0, size)) for size in (8, 10, 12)) for _ in range(count)]
    for i, place in enumerate(places):
        tensor[i, 0][place] = 2 + i / 100
    labels = np.array([i % 2 for i in range(count)])
    patients = tuple(f"secret-{i}" for i in range(count))
    samples = tuple(Sample(Path(p), p, int(n), "wedge" if n else "") for p, n in zip(patients, labels, strict=True))
    data = Prepared(tensor, labels, patients, patients, samples, "f", ())
    normals = HeldOut(np.linspace(0, 2.05, 19), np.zeros(19, np.int64), tuple(map(str, range(19))))
    calibration = calibrate(
        normals, fingerprint="f", method="held_out", default_policy="specificity=0.9", heatmap_scale=1
    )
    subject = Subject(
        name="n",
        family="m",
        outputs=("score", "heatmap", "reconstruction", "score_mean"),
        runtime=Planted(),
        runtime_name="eager",
        calibration=calibration,
        policy="specificity=0.9",
        data=data,
        seen=frozenset(),
        prep=PrepSpec(size=(8, 10, 12)),
    )
    return subject, places


def test_each_volume_is_three_planes_through_its_planted_maximum(tmp_path: Path) -> None:
    subject, places = _volumes()
    scored = score(subject)
    shown = list(_rows(subject, scored, subject.policy, pick(scored, 6)))
    assert len(shown) == 6
    for each, rows in shown:
        d, h, w = places[each.index]
        volume = subject.data.tensor[each.index, 0]
        assert [r.label.split("\n")[-1] for r in rows] == [f"slice {d}", f"row {h}", f"column {w}"]
        for row, plane in zip(rows, (volume[d], volume[::-1, h], volume[::-1, :, w]), strict=True):
            np.testing.assert_array_equal(row.panels["input"], plane)
            np.testing.assert_array_equal(row.panels["residual"], plane)
            assert list(row.panels) == ["input", "reconstruction", "residual", "heatmap"]
        assert ("wedge" in rows[0].label) == bool(each.label)
    plots = _grids(subject, scored, subject.policy, pick(scored, 6), tmp_path)
    assert len(plots) == 6
    for _, file in plots:
        assert matplotlib.image.imread(file).std() > 0


def test_labels_carry_score_p_value_and_decision(tmp_path: Path) -> None:
    subject, _ = _volumes()
    scored = score(subject)
    _, rows = next(_rows(subject, scored, subject.policy, pick(scored, 6)))
    # The highest score, 2.11, lies above all 19 held-out normals: p = 1 / 20.
    assert rows[0].label == "highest: wedge\nscore 2.11\np = 0.050\ncalled anomalous\nslice " + rows[0].label[-1]
    assert not rows[0].wrong
    lowest = [r for p, r in _rows(subject, scored, subject.policy, pick(scored, 6)) if p.place == "highest"][1][0]
    assert lowest.label.startswith("highest: normal")
    assert lowest.wrong  # 2.10 also lies above all: a false alarm
    assert isinstance(lowest, Row)


@pytest.fixture(scope="module")
def report(run_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return visualize(run_path, out=tmp_path_factory.mktemp("report"), count=6)


def test_the_report_of_a_run_shows_what_it_can_and_names_nobody(report: Path, run_path: Path) -> None:
    text = report.read_text()
    images = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    assert {p.name for p in report.parent.iterdir()} == {
        "report.html", "items_normal.png", "items_abnormal.png", "scores_slice.png", "scores_patient.png",
        "history.png", "confusion.png",
    }  # fmt: skip
    assert len(images) == 6
    for image in images:
        assert matplotlib.image.imread(io.BytesIO(base64.b64decode(image))).std() > 0
    words = re.sub(r'src="[^"]+"', "", text)
    run = open_run(run_path)
    for patient in run.split.roles:
        assert not re.search(rf"\b{re.escape(patient)}\b", words)
    assert "CQ500CT" not in words
    assert str(Path(run.config.data.partition(":")[2])) not in words
    for word in ("held out", "specificity=0.8", "baseline: mean", "baseline: std", "test patients"):
        assert word in words


@pytest.mark.parametrize("runtime", [None, "torchscript"])
def test_an_artifact_that_lies_alone_is_shown_without_curves(
    artifact: Path, cq500: Path, tmp_path: Path, runtime: str | None
) -> None:
    alone = Path(shutil.copytree(artifact, tmp_path / "alone"))
    found = visualize(alone, data=f"cq500:{cq500}", runtime=runtime, count=1)
    assert found == tmp_path / "alone.report" / "report.html"
    assert {p.stem for p in found.parent.glob("*.png")} == {
        "items_normal", "items_abnormal", "scores_slice", "scores_patient", "confusion",
    }  # fmt: skip
    assert (runtime or "onnx") in found.read_text()


def test_files_of_the_user_stay_and_a_file_is_no_folder(run_path: Path, tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("mine")
    visualize(run_path, out=tmp_path, count=1)
    assert (tmp_path / "own.txt").read_text() == "mine"
    with pytest.raises(MedadError, match="is a file"):
        visualize(run_path, out=tmp_path / "own.txt")


def test_a_policy_that_was_not_calibrated_is_refused_before_anything_is_written(run_path: Path, tmp_path: Path) -> None:
    with pytest.raises(MedadError, match="was not calibrated"):
        visualize(run_path, policy="specificity=0.5", out=tmp_path / "r")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("chosen", families().values(), ids=lambda f: f.name)
def test_every_registered_model_has_its_maps_shown(chosen: Family) -> None:
    model = chosen.trial().build()
    item = np.random.default_rng(0).random(chosen.trial().shape(chosen.trial().prep)).astype(np.float32)
    outputs = EagerRuntime(model).run(item[None], model.outputs)
    found = maps_of(item, {name: values[0] for name, values in outputs.items()})
    assert next(iter(found)) == "input"
    assert list(found)[-1] == "heatmap"
    assert ("residual" in found) == ("reconstruction" in model.outputs)
    assert all(values.shape == item.shape[1:] for values in found.values())
