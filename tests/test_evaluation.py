from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from medad_serve.errors import MedadError
from medad_serve.evaluation import evaluate
from medad_serve.export.graph import EagerRuntime
from medad_serve.predictor import Predictor
from medad_serve.runtime import run_batched
from medad_serve.training.run import open_run


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
    mean = data.tensor[rows].mean(axis=(1, 2, 3))
    assert metrics["baselines"]["mean"]["auroc"]["value"] == pytest.approx(roc_auc_score(labels, mean))


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
