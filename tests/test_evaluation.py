from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, roc_auc_score

from medad_serve.calibration import HeldOut, calibrate
from medad_serve.data import Prepared, Sample
from medad_serve.errors import MedadError
from medad_serve.evaluation import Subject, evaluate, measure, score
from medad_serve.export.graph import EagerRuntime
from medad_serve.predictor import Predictor
from medad_serve.runtime import run_batched
from medad_serve.spec import PrepSpec
from medad_serve.training.config import resolve
from medad_serve.training.fit import fit
from medad_serve.training.run import create_run, open_run


def test_a_run_is_measured_on_its_test_patients(run_path: Path, tmp_path: Path) -> None:
    metrics, target = evaluate(run_path, out=tmp_path / "m.json")
    assert json.loads(target.read_text()) == metrics
    assert target.with_suffix(".png").is_file()
    run = open_run(run_path)
    data = run.prepared()
    rows = data.rows(run.split.patients("test"))
    scores = run_batched(EagerRuntime(run.trained()), data.tensor[rows], ["score"])["score"]
    labels = data.labels[rows]
    assert metrics["split"] == "test"
    assert metrics["slice"]["normal"] + metrics["slice"]["abnormal"] == len(rows)
    assert metrics["slice"]["auroc"]["value"] == pytest.approx(roc_auc_score(labels, scores))
    assert metrics["slice"]["auprc"]["value"] == pytest.approx(average_precision_score(labels, scores))
    cutoff = metrics["slice"]["cutoff"]
    assert metrics["slice"]["sensitivity"]["value"] == pytest.approx(np.mean(scores[labels == 1] >= cutoff))
    called = scores >= cutoff
    assert metrics["slice"]["f1"]["value"] == pytest.approx(f1_score(labels, called))
    assert metrics["slice"]["accuracy"]["value"] == pytest.approx(accuracy_score(labels, called))
    for name, values in (
        ("mean", data.tensor[rows].mean(axis=(1, 2, 3))),
        ("p99", np.percentile(data.tensor[rows], 99, axis=(1, 2, 3))),
        ("std", data.tensor[rows].std(axis=(1, 2, 3))),
    ):
        assert metrics["baselines"][name]["auroc"]["value"] == pytest.approx(roc_auc_score(labels, values))
    assert metrics["calibration"]["method"] == "held_out"
    assert metrics["scores"] == {}


@pytest.mark.parametrize("runtime", ["onnx", "torchscript"])
def test_an_artifact_measures_as_its_run_does(run_path: Path, artifact: Path, tmp_path: Path, runtime: str) -> None:
    eager, _ = evaluate(run_path, out=tmp_path / "eager.json")
    exported, _ = evaluate(artifact, runtime=runtime, out=tmp_path / "exported.json")
    assert exported["split"] == "test"
    for level in ("slice", "patient"):
        assert exported[level]["auroc"] == eager[level]["auroc"]
        assert exported[level]["cutoff"] == pytest.approx(eager[level]["cutoff"], rel=1e-5)
        assert exported[level]["sensitivity"] == eager[level]["sensitivity"]


def test_measured_decisions_are_those_that_the_predictor_takes(artifact: Path, run_path: Path, tmp_path: Path) -> None:
    metrics, _ = evaluate(artifact, out=tmp_path / "m.json")
    run = open_run(run_path)
    test = run.split.patients("test")
    samples = [s for s in run.table().samples if s.patient in test]
    answers = Predictor.load(artifact).predict([s.path for s in samples])
    hits = [a.anomalous for a, s in zip(answers, samples, strict=True) if s.label]
    alarms = [a.anomalous for a, s in zip(answers, samples, strict=True) if not s.label]
    assert metrics["slice"]["sensitivity"]["value"] == pytest.approx(np.mean(hits))
    assert metrics["slice"]["specificity"]["value"] == pytest.approx(1 - np.mean(alarms))


def test_files_that_made_the_model_never_count_wherever_they_lie(
    artifact: Path, run_path: Path, cq500: Path, tmp_path: Path
) -> None:
    own, _ = evaluate(artifact, out=tmp_path / "own.json")
    moved = Path(shutil.copytree(cq500, tmp_path / "moved"))
    alone = Path(shutil.copytree(artifact, tmp_path / "alone"))
    test = open_run(run_path).split.patients("test")
    gone = sorted(test)[0]
    for subject in (run_path, artifact, alone):
        found, _ = evaluate(subject, data=f"cq500:{moved}", out=tmp_path / "m.json")
        assert found["split"] == "test"
        assert found["slice"]["auroc"] == own["slice"]["auroc"]
        assert found["patient"]["patients"] == len(test)
    shutil.rmtree(next(moved.glob(f"{gone} *")))
    found, _ = evaluate(alone, data=f"cq500:{moved}", out=tmp_path / "m.json")
    assert found["split"] == "unseen"
    assert found["patient"]["patients"] == len(test) - 1
    for patient in test - {gone}:
        shutil.rmtree(next(moved.glob(f"{patient} *")))
    with pytest.raises(MedadError, match="never saw"):
        evaluate(alone, data=f"cq500:{moved}", out=tmp_path / "m.json")


def test_healthy_only_data_measures_specificity(artifact: Path, cq500: Path, make_ct, make_slice, tmp_path) -> None:
    data = tmp_path / "healthy"
    series = data / "CQ500CT7 CQ500CT7" / "Unknown Study" / "CT Plain"
    series.mkdir(parents=True)
    make_ct(make_slice(4321), "CQ500CT7").save_as(series / "CT000000.dcm")
    (data / "reads.csv").write_text("name,Category,R1:ICH,R2:ICH,R3:ICH\nCQ500-CT-7,B1,0,0,0\n")
    metrics, _ = evaluate(artifact, data=f"cq500:{data}", out=tmp_path / "m.json")
    assert metrics["slice"]["specificity"]["value"] in (0.0, 1.0)
    assert metrics["slice"]["auroc"]["value"] is None


def test_figures_of_other_data_do_not_replace_the_runs_own(artifact: Path, cq500: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(artifact.parent, tmp_path / "run"))
    other = Path(shutil.copytree(cq500, tmp_path / "other"))
    shutil.rmtree(next(other.glob(f"{sorted(open_run(run).split.patients('test'))[0]} *")))
    _, own = evaluate(run / "artifact")
    _, others = evaluate(run / "artifact", data=f"cq500:{other}")
    assert own == run / "metrics.json"
    assert others != own


def test_another_policy_is_used_where_calibrated(artifact: Path, tmp_path: Path) -> None:
    metrics, _ = evaluate(artifact, policy="youden", out=tmp_path / "m.json")
    assert metrics["policy"] == "youden"
    with pytest.raises(MedadError, match="was not calibrated"):
        evaluate(artifact, policy="specificity=0.5", out=tmp_path / "m.json")


class Parts:
    """A model of several scores: the first pixel, the second, and a whole number that is no score."""

    def run(self, batch: np.ndarray, names: list[str]) -> dict[str, np.ndarray]:
        flat = batch.reshape(len(batch), -1)
        found = {
            "score": flat[:, 0],
            "heatmap": batch,
            "score_second": flat[:, 1],
            "count": np.arange(len(batch)),
        }
        return {name: found[name] for name in names}


def _subject(pixels: list[tuple[float, float]], labels: list[int], kinds: list[str], patients: str) -> Subject:
    tensor = np.zeros((len(pixels), 1, 2, 2), np.float32)
    tensor[:, 0, 0] = pixels
    names = tuple(patients)
    digests = tuple(f"{i:064d}" for i in range(len(pixels)))
    samples = tuple(Sample(Path(d), n, y, k) for d, n, y, k in zip(digests, names, labels, kinds, strict=True))
    normals = HeldOut(np.linspace(0, 0.9, 10), np.zeros(10, np.int64), tuple(map(str, range(10))))
    calibration = calibrate(
        normals, fingerprint="f", method="validation", default_policy="specificity=0.5", heatmap_scale=1
    )
    return Subject(
        name="n",
        family="m",
        outputs=("score", "heatmap", "score_second", "count"),
        runtime=Parts(),
        runtime_name="eager",
        calibration=calibration,
        policy="specificity=0.5",
        data=Prepared(tensor, np.array(labels), names, digests, samples, "f", ()),
        seen=frozenset(),
        prep=PrepSpec(size=(2, 2)),
    )


def test_classes_and_component_scores_are_measured_counted_by_hand() -> None:
    pixels = [(0.1, 0.9), (0.6, 0.1), (0.8, 0.5), (0.2, 0.2), (0.9, 0.4)]
    subject = _subject(pixels, [0, 0, 1, 1, 1], ["", "", "CNV", "CNV", "DME"], "abccd")
    metrics = measure(subject, score(subject), subject.policy)
    # specificity=0.5 of normals at 0, 0.1 .. 0.9 lies just above 0.5.
    assert metrics["slice"]["cutoff"] == pytest.approx(0.5)
    cnv, dme = (metrics["slice"]["classes"][name] for name in ("CNV", "DME"))
    assert (cnv["normal"], cnv["abnormal"]) == (2, 2)
    assert cnv["auroc"]["value"] == 3 / 4  # 0.8 beats both normals, 0.2 only the one at 0.1
    assert cnv["recall"]["value"] == cnv["precision"]["value"] == 1 / 2
    assert dme["f1"]["value"] == pytest.approx(2 / 3)  # one found, one false alarm
    of_patient = metrics["patient"]["classes"]["CNV"]
    assert (of_patient["normal"], of_patient["abnormal"]) == (2, 1)  # the patient's score is its highest, 0.8
    assert of_patient["auroc"]["value"] == 1
    assert set(metrics["scores"]) == {"score_second"}
    assert metrics["scores"]["score_second"]["auroc"]["value"] == 3 / 6
    assert metrics["calibration"] == {"method": "validation", "n": 10}


def test_scores_that_are_not_finite_are_refused() -> None:
    subject = _subject([(0.1, 0.1), (0.2, np.nan)], [0, 1], ["", ""], "ab")
    with pytest.raises(MedadError, match="not finite"):
        score(subject)


def test_a_run_of_cross_validation_is_measured_by_its_validation_cutoff(cq500: Path, tmp_path: Path) -> None:
    fast = ["train.max_epochs=1", "settings.hidden_dim=16", "split.fold=1", "calibration.method=validation"]
    run = create_run(resolve("ae", f"cq500:{cq500}", None, fast), tmp_path)
    fit(run, run.prepared())
    metrics, target = evaluate(run.path)
    assert target == run.path / "metrics.json"
    assert metrics["calibration"]["method"] == "validation"
    assert metrics["policy"] == "youden"
    assert metrics["patient"]["patients"] == len(run.split.patients("test"))
    assert metrics["slice"]["f1"]["value"] is not None
