from __future__ import annotations

from pathlib import Path

import pytest

from medad_serve.artifact import load_manifest
from medad_serve.bench import catalogue
from medad_serve.bench.catalogue import CALIBRATION, LEARNT, SMALL, SPLIT, Recipe, artifact_of, run_of
from medad_serve.models import families, family
from medad_serve.training.run import open_run

FEW = "train.max_epochs=1", *CALIBRATION
QUICK = Recipe("few", lambda _: (40, 8, 1), lambda chosen: iter((*chosen.quick, *SPLIT, *FEW)))


def test_an_artifact_is_made_once_and_again_when_other_code_would_make_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_here = {"onnx", "torchscript", "onnx/float32", "torchscript/float32", "onnx/int8"}
    monkeypatch.setattr("medad_serve.export.artifact.lacking", lambda name: None if name in made_here else "not here")
    made = artifact_of("ae", tmp_path, recipe=QUICK)
    assert made.is_relative_to(tmp_path / "few")
    manifest = load_manifest(made)
    assert set(manifest.calibrations) == {"onnx/float32", "torchscript/float32", "onnx/int8"}
    assert [each.variant for each in manifest.fidelity] == ["onnx/int8"]
    assert manifest.refused == {}
    written = (made / "medad.json").stat().st_mtime_ns
    assert artifact_of("ae", tmp_path, recipe=QUICK) == made
    assert (made / "medad.json").stat().st_mtime_ns == written
    monkeypatch.setattr(catalogue, "_maker", lambda: {"code": "other"})
    monkeypatch.setattr("medad_serve.export.variants.fault_of", lambda _: "it tells nothing apart")
    assert artifact_of("ae", tmp_path, recipe=QUICK) == made
    assert (made / "medad.json").stat().st_mtime_ns > written
    assert load_manifest(made).refused == {"onnx/int8": "it tells nothing apart"}


def test_what_builds_on_another_model_starts_from_its_run_of_the_same_recipe(tmp_path: Path) -> None:
    size = ("prep.size=[32,32,32]", *SPLIT)
    recipe = Recipe("few", lambda _: (20, 6, 1), lambda chosen: iter((*FEW, *(() if chosen.builds_on else size))))
    run = run_of("fracture", tmp_path, recipe=recipe)
    parent = open_run(Path(str(run.config.init)))
    assert run.path.is_relative_to(tmp_path / "few")
    assert parent.path.is_relative_to(tmp_path / "few")
    assert parent.config.model == "vqvae3d"


@pytest.mark.parametrize("name", families())
def test_a_small_run_is_of_the_size_that_is_served_and_one_that_learned_of_the_quickstart(name: str) -> None:
    chosen = family(name)
    small, learnt = list(SMALL.settings(chosen)), list(LEARNT.settings(chosen))
    assert not any(each.startswith("prep.") for each in small)
    assert "train.max_epochs=1" in small
    assert not any(each == "train.max_epochs=1" for each in learnt)
    assert sum(LEARNT.patients(chosen)[:2]) > sum(SMALL.patients(chosen)[:2])
