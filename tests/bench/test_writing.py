"""A report's folder: it reads back, and is whole or not there."""

from __future__ import annotations

import csv
from pathlib import Path
from xml.etree import ElementTree

import pytest

from medad_serve.bench import writing
from medad_serve.bench.document import page, plot_name
from medad_serve.bench.results import Report, told_apart
from medad_serve.bench.writing import CSV, PAGE, RECORD, write_report
from medad_serve.errors import MedadError
from medad_serve.spec import Fidelity


def _rows(markdown: str, heading: str) -> list[list[str]]:
    """Cells of the table whose header begins with ``heading``."""
    lines = markdown.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    table = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return [table[0], *table[2:]]


def test_json_reads_back_as_the_report(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path / "out")
    assert Report.model_validate_json((tmp_path / "out" / RECORD).read_bytes()) == report


def test_csv_has_a_row_for_each_engine_and_batch(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path / "out")
    with (tmp_path / "out" / CSV).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["engine"], r["precision"], r["batch"], float(r["p50_ms"])) for r in rows] == [
        ("PyTorch eager", "float32", "1", 10),
        ("PyTorch eager", "float32", "8", 80),
        ("onnxruntime", "int8", "1", 2.5),
        ("onnxruntime", "int8", "8", 20),
    ]
    assert {r["p99_ms"] for r in rows} == {""}
    assert {float(r["peak_mib"]) for r in rows} == {100.5}


def test_markdown_tables_hold_the_figures(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path / "out")
    text = (tmp_path / "out" / PAGE).read_text()
    header, *rows = _rows(text, "engine | batch")
    assert dict(zip(header, rows[-1], strict=True)) == {
        "engine": "onnxruntime int8",
        "batch": "8",
        "threads": "2",
        "p50 ms": "20.0",
        "p95 ms": "24.0",
        "p99 ms": "-",
        "items/s": "400",
        "x PyTorch eager": "4.00",
    }
    assert ["TensorRT", "PyTorch finds no CUDA device"] in _rows(text, "engine | why")
    assert _rows(text, "engine | disk MiB")[-1][:4] == ["onnxruntime int8", "17.0", "100", "0.8"]


def test_plots_are_whole_and_named_by_the_page(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path / "out")
    plot = tmp_path / "out" / plot_name(report.benchmarks[0])
    assert ElementTree.parse(plot).getroot().tag.endswith("svg")
    assert f"({plot.name})" in (tmp_path / "out" / PAGE).read_text()
    again = tmp_path / "again"
    write_report(report, again)
    assert plot.read_bytes() == (again / plot.name).read_bytes()


def test_a_failure_leaves_the_report_of_before(report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_report(report, tmp_path / "out")
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}

    def fails(*_: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(writing, "plot_benchmark", fails)
    with pytest.raises(OSError, match="no space"):
        write_report(report.model_copy(update={"seconds": 9.0}), tmp_path / "out")
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_a_folder_with_something_else_is_never_replaced(report: Report, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(MedadError, match="holds something else"):
        write_report(report, tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_the_fastest_of_each_model_are_told(report: Report) -> None:
    (benchmark,) = report.benchmarks
    both = report.model_copy(update={"benchmarks": told_apart([benchmark, benchmark])})
    header, *rows = _rows(page(both, command="make bench"), "model | input")
    first = dict(zip(header, rows[0], strict=True))
    assert first["reference ms"] == "10.0"
    assert first["fastest in float32"] == "PyTorch eager, 1.00 x"
    assert first["fastest of all"] == "onnxruntime int8, 4.00 x"
    assert [row[3] for row in rows] == ["1", "8"] * 2


def test_onnxruntime_is_told_beside_torchscript_and_the_fastest_beside_it(report: Report) -> None:
    (benchmark,) = report.benchmarks
    eager, int8 = benchmark.measured
    others = {"onnxruntime": 2.5, "TorchScript": 1.25}
    made = [
        eager.model_copy(
            update={"engine": name, "times": tuple(t.model_copy(update={"ratio": x}) for t in eager.times)}
        )
        for name, x in others.items()
    ]
    more = benchmark.model_copy(update={"measured": (eager, int8, *made)})
    header, *rows = _rows(
        page(report.model_copy(update={"benchmarks": (more, more)}), command="make bench"), "model | input"
    )
    first = dict(zip(header, rows[0], strict=True))
    assert first["onnxruntime x TorchScript"] == "2.00"
    assert first["fastest x onnxruntime"] == "1.60"  # 4 over 2.5


def test_what_reduced_precision_keeps_is_told(report: Report, fidelity: Fidelity) -> None:
    (benchmark,) = report.benchmarks
    known = benchmark.model_copy(update={"fidelity": (fidelity,), "fidelity_of": "of another model"})
    told = page(report.model_copy(update={"benchmarks": (known,)}), command="make bench")
    assert "by its gate at export, of another model:" in told
    header, row = _rows(told, "variant | AUROC")
    assert dict(zip(header, row, strict=True)) == {
        "variant": "onnx/int8",
        "AUROC": "0.9100",
        "trained, float32": "0.9120",
        "items": "40",
        "decided alike": "97.5%",
        "correlation": "0.9987",
        "layers in float32": "2 of 9",
    }
