"""``medad-serve bench`` over artifacts, from the command line to its files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from medad_serve.bench import everything
from medad_serve.bench.everything import FOLDER, PAGE
from medad_serve.bench.guard import FILE, Ratios
from medad_serve.bench.machine import this_machine
from medad_serve.bench.results import Report
from medad_serve.bench.tables import Table
from medad_serve.bench.writing import RECORD
from medad_serve.cli.bench import bench
from medad_serve.errors import MedadError

FEW = ("--engine", "PyTorch eager", "--engine", "onnxruntime", "--batches", "1,2", "--seconds", "0.1", "--no-cold")


def _bench(*arguments: object) -> Result:
    return CliRunner().invoke(bench, [str(argument) for argument in arguments])


def test_an_artifact_is_measured_printed_and_written(artifact: Path, tmp_path: Path) -> None:
    done = _bench(artifact.parent, *FEW, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "x PyTorch eager" in done.stdout
    report = Report.model_validate_json((tmp_path / "out" / "report.json").read_bytes())
    assert [each.label for each in report.benchmarks[0].measured] == ["PyTorch eager", "onnxruntime"]
    assert {file.suffix for file in (tmp_path / "out").iterdir()} == {".json", ".csv", ".md", ".svg"}


def test_json_is_the_report(artifact: Path) -> None:
    done = _bench(artifact, *FEW, "--json")
    (found,) = Report.model_validate_json(done.stdout).benchmarks
    assert {batch for batch, _ in found.settings} == {1, 2}


def test_without_a_gpu_it_fails_and_says_what_is_missing(artifact: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = _bench(artifact, "--device", "cuda")
    assert done.exit_code == 1
    assert "no GPU to measure on: PyTorch finds no CUDA device" in str(done.exception)
    assert "TensorRT" in str(done.exception)


def test_a_path_that_is_no_artifact_is_refused_before_anything_is_measured(artifact: Path, tmp_path: Path) -> None:
    done = _bench(artifact, tmp_path, *FEW)
    assert "medad.json is missing" in str(done.exception)
    assert "timing" not in done.output


def test_an_unknown_engine_is_refused(artifact: Path) -> None:
    assert "there is no engine 'abacus'" in str(_bench(artifact, "--engine", "abacus").exception)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--device", "gpu"), "give cpu, auto, cuda, or cuda:N"),
        (("--all", "."), "leave FILES out"),
        (("--all", "--io", "--model", "ae"), "leave everything else out"),
        (("--all", "--io", "--check"), "leave everything else out"),
        (("--all", "--epoch", "--device", "cuda"), "leave everything else out"),
        (("--check", "."), "leave FILES out"),
        (("--check", "--engine", "onnxruntime"), "choose by --model alone"),
    ],
)
def test_what_would_be_ignored_or_cannot_be_is_refused(arguments: tuple[str, ...], said: str) -> None:
    done = _bench(*arguments)
    assert done.exit_code == 2
    assert said in done.output


@pytest.fixture
def docs(tmp_path: Path, artifact: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the small artifact stands for that of a model made for it."""
    monkeypatch.setattr(everything, "artifact_of", lambda *_, **__: artifact)
    monkeypatch.setattr(everything, "GUARD_SECONDS", 0.1)
    monkeypatch.setattr(everything, "_decoding", lambda *_: [Table("dicom", "Data", ("of", "ms"), (("decode", 1.5),))])
    monkeypatch.setattr(everything, "_training", lambda *_: Table("training", "Steps", ("of", "ms"), (("step", 2.5),)))
    return tmp_path / "docs"


def test_every_model_makes_a_page_that_the_check_then_holds_to(docs: Path, tmp_path: Path) -> None:
    made = _bench("--all", "--model", "ae", *FEW, "--docs", docs, "--runs", tmp_path)
    assert made.exit_code == 0, made.output
    page = (docs / PAGE).read_text()
    assert "Made by `medad-serve bench --all" in page, "some engines were chosen"
    plots = [line.partition("](")[2].rstrip(")") for line in page.splitlines() if line.startswith("![")]
    assert plots
    assert all((docs / plot).is_file() for plot in plots)
    record = Report.model_validate_json((docs / FOLDER / RECORD).read_bytes())
    assert (
        "trained on phantoms at 64x64, as `medad-serve quickstart --model ae` does" in record.benchmarks[0].fidelity_of
    )
    assert "| decode | 1.50 |" in page
    assert (docs / FOLDER / "dicom.csv").read_text() == "of,ms\ndecode,1.5\n"
    ratios = Ratios.model_validate_json((docs / FOLDER / FILE).read_bytes())
    told = {*ratios.ratios["ae"], *(name.removeprefix("ae: ") for name in ratios.unsteady)}
    assert told >= {"onnxruntime, batch 1", "TorchScript, batch 8"}
    renewed = _bench("--all", "--io", "--epoch", "--docs", docs, "--seconds", "0.1")
    assert renewed.exit_code == 0, renewed.output
    assert (docs / PAGE).read_text() == page
    generous = ratios.model_copy(update={"tolerance": 0.99})  # a tenth of a second settles nothing about noise
    (docs / FOLDER / FILE).write_text(generous.model_dump_json())
    checked = _bench("--check", "--docs", docs, "--runs", tmp_path, "--json")
    assert checked.exit_code == 0, checked.output
    assert {each["worse"] for each in json.loads(checked.stdout)} == {False}


def test_a_model_that_cannot_be_exported_is_told_on_the_page(
    docs: Path, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(name: str, *_: object, **__: object) -> Path:
        if name == "vae":
            raise MedadError("parity: it differs", "Train it longer")
        return artifact

    monkeypatch.setattr(everything, "artifact_of", made)
    assert _bench("--all", "--model", "ae", "--model", "vae", *FEW, "--docs", docs).exit_code == 0
    assert "| vae | parity: it differs. Train it longer |" in (docs / PAGE).read_text()
    assert "no model could be measured" in str(_bench("--all", "--model", "vae", *FEW, "--docs", docs).exception)


def test_a_check_fails_with_a_table_where_an_engine_became_slower(docs: Path, tmp_path: Path) -> None:
    (docs / FOLDER).mkdir(parents=True)
    before = {"ae": {"onnxruntime, batch 1": 1e6, "TorchScript, batch 1": 1e-6}}
    ratios = Ratios(machine=this_machine().kind, seconds=0.1, tolerance=0.3, ratios=before)
    (docs / FOLDER / FILE).write_text(ratios.model_dump_json())
    done = _bench("--check", "--docs", docs, "--runs", tmp_path)
    assert done.exit_code == 1
    assert "1 of 2 ratios are worse" in str(done.exception)
    assert [line.split()[-1] == "worse" for line in done.stdout.splitlines() if ", batch 1" in line] == [True, False]
