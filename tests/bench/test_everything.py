from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from medad_serve.artifact import load_manifest, write_manifest
from medad_serve.bench import everything
from medad_serve.bench.catalogue import LEARNT, SMALL, Recipe
from medad_serve.bench.everything import bench_all, renew_data
from medad_serve.bench.guard import FILE, read_ratios
from medad_serve.bench.machine import this_machine
from medad_serve.bench.measure import Plan
from medad_serve.bench.results import Benchmark
from medad_serve.bench.tables import Table
from medad_serve.errors import MedadError
from medad_serve.evaluation import evaluate
from medad_serve.spec import Fidelity

MODELS = ("ae", "vae", "vqvae")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, benchmark: Benchmark) -> list[str]:
    """Measures nothing: every model gets the figures of one benchmark; what was asked for is listed."""
    asked: list[str] = []

    def artifact(name: str, *_: object, recipe: Recipe = SMALL, **__: object) -> Path:
        if recipe is LEARNT:
            raise MedadError(f"{name} learned nothing", "Train it longer")
        asked.append(name)
        if name == "vae":
            raise MedadError("it cannot be exported", "Try another")
        return Path(name)

    monkeypatch.setattr(everything, "artifact_of", artifact)
    monkeypatch.setattr(
        everything,
        "bench_engines",
        lambda artifact, *_: benchmark.model_copy(update={"name": artifact.name, "family": artifact.name}),
    )
    monkeypatch.setattr(everything, "predict_seconds", lambda _: 0.75)
    monkeypatch.setattr(everything, "_ratios", lambda _: {"onnxruntime, batch 1": 4.0})
    monkeypatch.setattr(everything, "_decoding", lambda *_: [_table("dicom", 1.5)])
    monkeypatch.setattr(everything, "_training", lambda *_: _table("training", 2.5))
    return asked


def _table(name: str, ms: float) -> Table:
    return Table(name, name.title(), ("of", "ms"), (("x", ms),))


def test_the_page_tells_every_model_and_why_one_is_missing(measured: list[str], tmp_path: Path) -> None:
    report = bench_all(MODELS, tmp_path / "runs", tmp_path / "docs", Plan(), say=lambda _: None)
    assert measured == list(MODELS)
    assert [each.name for each in report.benchmarks] == ["ae", "vqvae"]
    page = (tmp_path / "docs" / "benchmarks.md").read_text()
    assert "it cannot be exported" in page
    assert "not reached" not in page
    assert not any(each.fidelity for each in report.benchmarks), "none that learned could be made"
    kept = read_ratios(tmp_path / "docs" / "benchmarks", this_machine().kind)
    assert set(kept.ratios) == {"ae", "vqvae"}
    assert kept.tolerance == 0


def test_speed_is_of_the_small_run_and_fidelity_of_the_one_that_learned(
    monkeypatch: pytest.MonkeyPatch, measured: list[str], artifact: Path, fidelity: Fidelity, tmp_path: Path
) -> None:
    shutil.copytree(artifact.parent, tmp_path / "run")
    learnt = tmp_path / "run" / "artifact"
    told = {"fidelity": (fidelity,), "refused": {"onnx/float16": "AUROC falls"}}
    write_manifest(learnt, load_manifest(artifact).model_copy(update=told))
    small = everything.artifact_of

    def made(name: str, *more: object, recipe: Recipe = SMALL, **how: object) -> Path:
        return learnt if recipe is LEARNT else small(name, *more, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(everything, "artifact_of", made)
    (found,) = bench_all(["ae"], tmp_path / "runs", tmp_path / "docs", Plan(), say=lambda _: None).benchmarks
    assert found.name == "ae", "as the engines were given the small one"
    assert found.fidelity == (fidelity,)
    assert "at 64x64, as `medad-serve quickstart --model ae` does" in found.fidelity_of
    assert found.refused == ("onnx/float16: AUROC falls",)
    metrics, _ = evaluate(learnt, runtime="onnx", out=tmp_path / "metrics.json")
    assert found.tested["onnx/float32"] == pytest.approx(metrics["slice"]["auroc"]["value"])
    page = (tmp_path / "docs" / "benchmarks.md").read_text()
    assert "- onnx/float16: AUROC falls" in page
    assert "| in float32 |" in page


def test_a_run_that_is_stopped_leaves_the_models_before_and_tells_what_is_missing(
    measured: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, benchmark: Benchmark
) -> None:
    def stopped(artifact: Path, *_: object) -> Benchmark:
        if artifact.name == "vqvae":
            raise KeyboardInterrupt
        return benchmark.model_copy(update={"name": artifact.name, "family": artifact.name})

    monkeypatch.setattr(everything, "bench_engines", stopped)
    with pytest.raises(KeyboardInterrupt):
        bench_all(MODELS, tmp_path / "runs", tmp_path / "docs", Plan(), say=lambda _: None)
    page = (tmp_path / "docs" / "benchmarks.md").read_text()
    assert "## ae" in page
    assert "| vqvae | not reached before the run was stopped |" in page
    assert (tmp_path / "docs" / "benchmarks" / FILE).is_file()


def test_one_model_measured_anew_leaves_what_the_page_holds_of_the_others(
    measured: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs, folder = tmp_path / "docs", tmp_path / "docs" / "benchmarks"
    bench_all(["ae", "vqvae"], tmp_path / "runs", docs, Plan(), say=lambda _: None)
    monkeypatch.setattr(everything, "_ratios", lambda _: {"onnxruntime, batch 1": 5.0})
    monkeypatch.setattr(everything, "predict_seconds", lambda _: 0.25)
    monkeypatch.setattr(everything, "_decoding", lambda *_: pytest.fail("they are there"))
    report = bench_all(["vqvae"], tmp_path / "runs", docs, Plan(), say=lambda _: None, keep=True)
    assert [each.name for each in report.benchmarks] == ["ae", "vqvae"]
    kept = read_ratios(folder, this_machine().kind).ratios
    assert {name: list(each.values()) for name, each in kept.items()} == {"ae": [4.0], "vqvae": [5.0]}
    page = (docs / "benchmarks.md").read_text()
    assert "| ae | 0.75 |\n| vqvae | 0.25 |" in page
    assert "| x | 1.50 |" in page


@pytest.mark.parametrize(("io", "epoch"), [(True, False), (False, True), (True, True)])
def test_what_data_costs_is_measured_anew_and_the_rest_of_the_page_kept(
    measured: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, io: bool, epoch: bool
) -> None:
    docs = tmp_path / "docs"
    bench_all(MODELS, tmp_path / "runs", docs, Plan(only=("onnxruntime",)), say=lambda _: None)
    before = (docs / "benchmarks" / FILE).read_text()
    monkeypatch.setattr(everything, "_decoding", lambda *_: [_table("dicom", 7.5)])
    asked: list[tuple[object, ...]] = []

    def training(*what: object) -> Table:
        asked.append(what)
        return _table("training", 8.5)

    monkeypatch.setattr(everything, "_training", training)
    renew_data(docs, io=io, epoch=epoch, seconds=None, say=lambda _: None)
    page = (docs / "benchmarks.md").read_text()
    assert ("| x | 7.50 |" in page, "| x | 1.50 |" in page) == (io, not io)
    assert ("| x | 8.50 |" in page, "| x | 2.50 |" in page) == (epoch, not epoch)
    assert "## ae" in page
    assert "## vqvae" in page
    assert (docs / "benchmarks" / FILE).read_text() == before
    assert [what[:2] for what in asked] == [(["ae", "vqvae"], Plan().seconds)] * epoch
    assert "it cannot be exported" in page
    assert "Made by `medad-serve bench --all --device cpu" in page


def test_what_data_costs_needs_a_page_of_this_processor_and_packages(
    measured: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused() -> None:
        with pytest.raises(MedadError, match="holds no benchmark of this machine"):
            renew_data(tmp_path, io=True, epoch=False, seconds=None, say=lambda _: None)

    refused()
    bench_all(["ae"], tmp_path / "runs", tmp_path, Plan(), say=lambda _: None)
    here, page = this_machine(), (tmp_path / "benchmarks.md").read_text()
    other = here.model_copy(update={"versions": {**here.versions, "torch": "1.0"}})
    monkeypatch.setattr(everything, "this_machine", lambda: other)
    refused()
    assert (tmp_path / "benchmarks.md").read_text() == page


def test_a_table_of_data_that_a_stopped_run_did_not_reach_is_measured_with_the_next_model(
    measured: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> Table:
        raise KeyboardInterrupt

    monkeypatch.setattr(everything, "_training", stopped)
    with pytest.raises(KeyboardInterrupt):
        bench_all(["ae"], tmp_path / "runs", tmp_path, Plan(), say=lambda _: None)
    renew_data(tmp_path, io=True, epoch=False, seconds=None, say=lambda _: None)
    monkeypatch.setattr(everything, "_training", lambda *_: _table("training", 3.5))
    bench_all(["vqvae"], tmp_path / "runs", tmp_path, Plan(), say=lambda _: None, keep=True)
    assert "| x | 3.50 |" in (tmp_path / "benchmarks.md").read_text()


def test_a_page_of_other_packages_is_made_anew(
    measured: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench_all(["ae"], tmp_path / "runs", tmp_path / "docs", Plan(), say=lambda _: None)
    here = this_machine()
    other = here.model_copy(update={"versions": {**here.versions, "torch": "1.0"}})
    monkeypatch.setattr(everything, "this_machine", lambda: other)
    said: list[str] = []
    report = bench_all(["vqvae"], tmp_path / "runs", tmp_path / "docs", Plan(), say=said.append, keep=True)
    assert [each.name for each in report.benchmarks] == ["vqvae"]
    assert any("other packages" in line for line in said)


def test_a_page_of_some_engines_says_so(measured: list[str], tmp_path: Path) -> None:
    plan = Plan(only=("onnxruntime",), seconds=2.5)
    bench_all(["ae"], tmp_path / "runs", tmp_path / "docs", plan, say=lambda _: None)
    page = (tmp_path / "docs" / "benchmarks.md").read_text()
    assert "Made by `medad-serve bench --all --device cpu --seconds 2.5 --engine 'onnxruntime'`" in page


def test_no_model_at_all_is_an_error_and_writes_nothing(measured: list[str], tmp_path: Path) -> None:
    with pytest.raises(MedadError, match="no model could be measured"):
        bench_all(["vae"], tmp_path / "runs", tmp_path / "docs", Plan(), say=lambda _: None)
    assert not (tmp_path / "docs").exists()
