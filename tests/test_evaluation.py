from __future__ import annotations

import json
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


def test_other_data_counts_whole(artifact: Path, cq500: Path, tmp_path: Path) -> None:
    import shutil

    other = shutil.copytree(cq500, tmp_path / "other")
    shutil.rmtree(next(other.glob("CQ500CT0 *")))
    metrics, _ = evaluate(artifact, data=f"cq500:{other}", out=tmp_path / "m.json")
    assert metrics["split"] == "all"
    assert metrics["patient"]["patients"] == 47


def test_another_policy_is_used_where_calibrated(artifact: Path, tmp_path: Path) -> None:
    metrics, _ = evaluate(artifact, policy="youden", out=tmp_path / "m.json")
    assert metrics["policy"] == "youden"
    with pytest.raises(MedadError, match="was not calibrated"):
        evaluate(artifact, policy="specificity=0.5", out=tmp_path / "m.json")
