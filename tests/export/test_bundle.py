from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medad_serve.artifact import load_manifest
from medad_serve.errors import MedadError
from medad_serve.evaluation import make_bundle
from medad_serve.export import graphs as graphs_module
from medad_serve.export.artifact import export
from medad_serve.export.bundle import Bundle, full_color, score_parts
from medad_serve.export.graph import EagerRuntime
from medad_serve.export.parity import check_parity, relative_difference
from medad_serve.runtime import open_runtime, run_batched
from medad_serve.training.run import open_run


@pytest.fixture(scope="module")
def bundle(run_path: Path) -> Bundle:
    run = open_run(run_path)
    return make_bundle(run, run.prepared())


class Shifted:
    """A runtime whose scores are a factor off, as a faulty export would give."""

    def __init__(self, bundle: Bundle, factor: float) -> None:
        self.inner, self.factor = EagerRuntime(bundle.model), factor

    def run(self, batch, names):
        found = self.inner.run(batch, names)
        return {n: v * np.float32(self.factor) if n == "score" else v for n, v in found.items()}


def test_parity_is_recorded_for_each_runtime(artifact: Path) -> None:
    manifest = load_manifest(artifact)
    assert {p.runtime for p in manifest.parity} == {"onnx", "torchscript"}
    for parity in manifest.parity:
        assert parity.batches == (1, 8)
        assert parity.inputs >= 16
        assert parity.flips == 0
        assert parity.decisions > 0
        assert parity.max_relative_difference <= parity.relative_tolerance


def test_parity_inputs_are_held_out_and_of_both_classes(bundle: Bundle, run_path: Path) -> None:
    run = open_run(run_path)
    data = run.prepared()
    training = data.tensor[data.rows(run.split.patients("train"))]
    held_out = data.tensor[data.rows(run.split.patients("validation", "calibration", "test"))]
    for x in bundle.parity_inputs:
        assert (held_out == x).all(axis=(1, 2, 3)).any()
        assert not (training == x).all(axis=(1, 2, 3)).any()


def test_a_score_beyond_the_tolerance_is_refused(bundle: Bundle) -> None:
    eager = EagerRuntime(bundle.model)
    fine = check_parity("x", Shifted(bundle, 1 + 2e-5), eager, bundle.parity_inputs, ["score"], [0.1])
    assert fine.max_relative_difference == pytest.approx(2e-5, rel=0.1)
    with pytest.raises(MedadError, match=r"parity: x output score at batch 1 differs"):
        check_parity("x", Shifted(bundle, 1.001), eager, bundle.parity_inputs, ["score"], [0.1])


def test_a_flipped_decision_is_refused(bundle: Bundle) -> None:
    eager = EagerRuntime(bundle.model)
    score = float(eager.run(bundle.parity_inputs[:1], ["score"])["score"][0])
    # A tolerance wide enough for the difference: the score falls from just outside its band to below the cutoff.
    with pytest.raises(MedadError, match="2 decisions of x flip"):
        check_parity(
            "x", Shifted(bundle, 0.6), eager, bundle.parity_inputs[:1], ["score"], [score / 1.42], tolerance=0.41
        )


def test_nan_is_never_within_the_tolerance(bundle: Bundle) -> None:
    eager = EagerRuntime(bundle.model)
    with pytest.raises(MedadError, match="differs by nan"):
        check_parity("x", Shifted(bundle, float("nan")), eager, bundle.parity_inputs, ["score"], [0.1])


def test_relative_difference_is_per_item() -> None:
    expected = np.array([[1.0, 0.0], [10.0, 1e-9]], np.float32)
    found = np.array([[1.0, 0.01], [10.0, 0.0]], np.float32)
    assert relative_difference(found, expected) == pytest.approx(0.01)


def test_a_map_of_nearly_zero_is_held_against_a_tenth_of_the_median_item() -> None:
    expected = np.array([[1e-6, 0.0], [1.0, 0.5], [2.0, 0.5]], np.float32)
    found = expected + np.array([[0, 2e-6], [0, 0], [0, 0]], np.float32)
    assert relative_difference(found, expected) == pytest.approx(2e-5, rel=1e-3)


def test_a_single_value_near_zero_is_held_against_the_median_item() -> None:
    expected = np.array([1e-6, -1.0, 2.0, 4.0], np.float32)
    found = expected + np.array([3e-5, 0, 0, 0], np.float32)
    assert relative_difference(found, expected) == pytest.approx(2e-5, rel=1e-2)


def test_calibration_is_over_the_exported_file(bundle: Bundle, artifact: Path) -> None:
    manifest = load_manifest(artifact)
    for kind in ("onnx", "torchscript"):
        runtime = open_runtime(artifact, kind, bundle.model.outputs)
        healthy = [p for p in bundle.parts if not p.labels.any()]
        scores = np.sort(np.concatenate([run_batched(runtime, p.tensor, ["score"])["score"] for p in healthy]))
        stored = manifest.calibrations[f"{kind}/float32"].item
        assert stored.normal_scores == tuple(scores.astype(float))
        assert stored.n == len(scores) == sum(len(p.labels) for p in healthy)


def test_full_colour_is_typical_of_normals_unless_a_classifier_leaves_them_dark() -> None:
    assert full_color([1.0, 2.0, 3.0], [4.0, 9.0, 9.0]) == 2.0
    assert full_color([1.0, 2.0, 3.0], []) == 2.0
    assert full_color([0.0, 0.0, 0.5], [4.0, 5.0, 9.0]) == 5.0


def test_a_failed_gate_leaves_nothing(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs_module, "open_runtime", lambda *_, **__: Shifted(bundle, 1.01))
    with pytest.raises(MedadError, match="parity"):
        export(bundle, ["torchscript"], tmp_path / "artifact")
    assert list(tmp_path.iterdir()) == []


def test_unknown_format_is_named(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(MedadError, match=r"no runtime 'tflite'. Choose one of: onnx/float32"):
        export(bundle, ["tflite"], tmp_path / "a")


def test_scores_that_are_not_finite_are_refused(bundle: Bundle) -> None:
    with pytest.raises(MedadError, match="not finite"):
        score_parts(bundle, lambda _: Shifted(bundle, float("nan")))


def test_a_model_that_tells_nothing_apart_is_refused(bundle: Bundle) -> None:
    with pytest.raises(MedadError, match="same score"):
        score_parts(bundle, lambda _: Shifted(bundle, 0.0))


def test_too_few_healthy_patients_are_refused(bundle: Bundle) -> None:
    with pytest.raises(MedadError, match="takes at least 19"):
        score_parts(replace(bundle, policy="specificity=0.95"), EagerRuntime)


def test_killed_during_export_there_is_no_artifact(run_path: Path, tmp_path: Path) -> None:
    import shutil

    run = Path(shutil.copytree(run_path, tmp_path / "run", ignore=shutil.ignore_patterns("artifact")))
    process = subprocess.Popen(
        [sys.executable, "-m", "medad_serve.cli.main", "export", str(run)], stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(run.glob(".artifact*/model.onnx")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(run.glob(".artifact*")), "the export was never seen at work"
    assert not (run / "artifact").exists()
