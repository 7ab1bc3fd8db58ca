from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medad_serve.artifact import GRAPHS, load_manifest
from medad_serve.errors import MedadError
from medad_serve.evaluation import make_bundle
from medad_serve.export import variants as variants_module
from medad_serve.export.artifact import export
from medad_serve.export.bundle import Bundle
from medad_serve.predictor import Predictor
from medad_serve.runtime import lacking, open_runtime, run_batched
from medad_serve.spec import Fidelity
from medad_serve.training.run import open_run


@pytest.fixture(scope="module")
def bundle(run_path: Path) -> Bundle:
    run = open_run(run_path)
    return make_bundle(run, run.prepared())


@pytest.fixture(scope="module")
def reduced(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("reduced") / "artifact"
    said: list[str] = []
    export(bundle, ["onnx", "all"], target, said.append)
    made = load_manifest(target).calibrations
    assert len(said) == len([name for name in GRAPHS if not lacking(name)]), "each is made, or said to be left out"
    assert "onnx/int8" in made
    return target


def test_cutoffs_of_a_variant_come_from_the_scores_of_its_own_file(bundle: Bundle, reduced: Path) -> None:
    manifest = load_manifest(reduced)
    healthy = [part.tensor for part in bundle.parts if not part.labels.any()]
    for variant, made in manifest.calibrations.items():
        runtime = open_runtime(reduced, variant, bundle.model.outputs)
        scores = np.sort(np.concatenate([run_batched(runtime, each, ["score"])["score"] for each in healthy]))
        assert made.item.normal_scores == pytest.approx(tuple(scores.astype(float)), rel=1e-5), variant
    floats, eights = (manifest.calibrations[name].item.normal_scores for name in ("onnx/float32", "onnx/int8"))
    assert floats != eights


def test_each_variant_has_the_proof_of_its_precision(reduced: Path) -> None:
    manifest = load_manifest(reduced)
    exact = [name for name in manifest.calibrations if name.endswith("/float32")]
    assert [p.runtime for p in manifest.parity] == [name.partition("/")[0] for name in exact]
    assert {f.variant for f in manifest.fidelity} == set(manifest.calibrations) - set(exact)
    for proof in manifest.fidelity:
        assert proof.auroc is not None
        assert proof.auroc_trained is not None
        assert proof.auroc_trained - proof.auroc <= 0.002
        assert (proof.layers > 0) == ("int8" in proof.variant)


def test_a_variant_predicts_by_its_own_cutoffs(reduced: Path, dicom_files: list[Path]) -> None:
    predictor = Predictor.load(reduced, runtime="onnx/int8")
    [result] = predictor.predict([dicom_files[0]])
    assert result.cutoff == load_manifest(reduced).calibrations["onnx/int8"].item.cutoffs[0].value


def test_ever_more_layers_stay_in_float_until_the_gate_accepts(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Fidelity] = []

    def strict(fidelity: Fidelity) -> str | None:
        seen.append(fidelity)
        return "it is not good enough" if fidelity.float_layers < 2 else None

    monkeypatch.setattr(variants_module, "fault_of", strict)
    export(bundle, ["onnx/int8"], tmp_path / "artifact")
    [kept] = load_manifest(tmp_path / "artifact").fidelity
    layers = [each.float_layers for each in seen]
    assert layers == sorted(layers)
    assert layers[0] == 0
    assert kept.float_layers == layers[-1] >= 2


def test_a_variant_that_is_asked_for_and_refused_leaves_nothing(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(variants_module, "fault_of", lambda _: "it tells nothing apart")
    with pytest.raises(MedadError, match="onnx/int8: it tells nothing apart"):
        export(bundle, ["onnx", "onnx/int8"], tmp_path / "artifact")
    assert list(tmp_path.iterdir()) == []


def test_of_all_a_refused_one_is_left_out_and_said(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(variants_module, "fault_of", lambda f: "no" if f.variant == "onnx/float16" else None)
    monkeypatch.setattr("medad_serve.export.artifact.lacking", lambda name: None if "onnx" in name else "not here")
    said: list[str] = []
    export(bundle, ["onnx", "all"], tmp_path / "artifact", said.append)
    manifest = load_manifest(tmp_path / "artifact")
    assert set(manifest.calibrations) == {"onnx/float32", "onnx/int8"}
    assert set(manifest.files) == {"model.onnx", "model.int8.onnx"}
    assert "left out: onnx/float16: no" in said
    assert manifest.refused == {"onnx/float16": "no"}
    with pytest.raises(MedadError, match=r"was not exported for onnx/float16 \(no\)"):
        manifest.calibration_of("onnx/float16", "artifact")


def test_a_runtime_that_is_not_installed_is_named_with_what_to_do(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medad_serve.runtime.find_spec", lambda _: None)
    with pytest.raises(MedadError, match=r"openvino is not installed: pip install 'medad-serve\[openvino\]'"):
        export(bundle, ["openvino"], tmp_path / "artifact")
