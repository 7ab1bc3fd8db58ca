from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from medad_serve.bench.codecs import IN_USE, bench_codecs
from medad_serve.bench.encodings import SYNTAXES
from medad_serve.bench.io import DICOM_COLUMNS, bench_dicom, bench_files
from medad_serve.cli.main import cli
from medad_serve.errors import MedadError
from medad_serve.loadbench.phantom import slice_bytes


def test_a_syntax_has_a_row_for_each_size_and_depth_with_its_floor_and_stock_pipelines() -> None:
    some = [syntax for syntax in SYNTAXES if syntax.name in ("explicit little endian", "JPEG-LS")]
    table = bench_dicom((64,), syntaxes=some, seconds=0.001)
    rows = [dict(zip(DICOM_COLUMNS, row, strict=True)) for row in table.rows]
    assert [(row["encoding"], row["bits"]) for row in rows] == [(s.name, bits) for s in some for bits in s.bits]
    for row in rows:
        assert all(float(value) > 0 for name, value in row.items() if name != "encoding"), row


def test_pictures_and_volumes_have_rows() -> None:
    table = bench_files(64, seconds=0.001)
    assert [row[0] for row in table.rows] == ["PNG", "PNG", "JPEG", ".npy", ".nii", ".nii.gz"]
    assert all(float(value or 0) > 0 for row in table.rows for value in row[3:])


def test_the_decoder_in_use_reads_every_lossless_frame_rightly() -> None:
    table = bench_codecs(64, seconds=0.001)
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    in_use = [row for row in rows if row["in use"]]
    compressed = [s for s in SYNTAXES if s.encode]
    assert [(row["encoding"], row["bits"]) for row in in_use] == [(s.name, bits) for s in compressed for bits in s.bits]
    assert all(row["decoder"] == IN_USE[str(row["encoding"])] and row["x in use"] == 1 for row in in_use)
    assert all(
        row["largest difference"] == 0 for row in in_use if row["encoding"] not in ("JPEG baseline", "JPEG extended")
    )


def test_given_files_are_measured_and_written(tmp_path: Path) -> None:
    file, out = tmp_path / "slice.dcm", tmp_path / "out"
    file.write_bytes(slice_bytes())
    done = CliRunner().invoke(cli, ["bench", "--io", str(file), "--seconds", "0.1", "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert [row["task"] for row in told["given"]] == ["dcmread", "dcmread + pixel_array", "decode", "decode + prepare"]
    assert told["given"][1]["x floor"] == 1
    assert (out / "given.csv").read_text().startswith("task,ms,x floor\n")
    assert json.loads((out / "report.json").read_text())["given"] == told["given"]
    assert "| decode + prepare |" in (out / "report.md").read_text()
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    refused = CliRunner().invoke(cli, ["bench", "--io", str(file), "--out", str(other)])
    assert isinstance(refused.exception, MedadError)
    assert "holds something else" in str(refused.exception)
    assert [each.name for each in other.iterdir()] == ["notes.txt"]
