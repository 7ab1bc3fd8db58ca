from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from medad_serve.data import Sample, Table, cache, load_prepared, read_table
from medad_serve.errors import MedadError
from medad_serve.io import decode
from medad_serve.models import family
from medad_serve.prep import prepare

AE = family("ae")


@pytest.fixture
def table(dicom_files: list[Path]) -> Table:
    return Table(tuple(Sample(p, p.parts[-4], 0) for p in dicom_files[:6]))


def _load(table: Table, root: Path, **prep):
    return load_prepared(table, AE.prep.model_copy(update=prep), AE.input, root=root)


def test_rows_are_what_prepare_makes(table: Table, tmp_path: Path) -> None:
    made = _load(table, tmp_path)
    assert isinstance(made.tensor, np.memmap)
    for row, sample in zip(made.tensor, table.samples, strict=True):
        assert np.array_equal(row, prepare(decode(sample.path), AE.prep).tensor[0])


def test_second_use_reads_no_dicom(table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _load(table, tmp_path)

    def refuse(*_: object) -> None:
        raise AssertionError("a file was read again")

    monkeypatch.setattr(cache, "decode", refuse)
    monkeypatch.setattr(cache, "sha256", refuse)
    again = _load(table, tmp_path)
    assert np.array_equal(first.tensor, again.tensor)
    assert first.fingerprint == again.fingerprint


def test_key_is_content_and_spec(table: Table, tmp_path: Path) -> None:
    first = _load(table, tmp_path / "cache")
    assert _load(table, tmp_path / "cache", size=(32, 32)).tensor.shape[-1] == 32
    moved = tmp_path / "moved"
    moved.mkdir()
    samples = []
    for index, sample in enumerate(table.samples):
        shutil.copy(sample.path, moved / f"{index}.dcm")
        samples.append(Sample(moved / f"{index}.dcm", sample.patient, 0))
    entries = len(list((tmp_path / "cache").glob("*/rows.json")))
    assert _load(Table(tuple(samples)), tmp_path / "cache").fingerprint == first.fingerprint
    assert len(list((tmp_path / "cache").glob("*/rows.json"))) == entries
    samples[0].path.write_bytes(table.samples[5].path.read_bytes())
    assert _load(Table(tuple(samples)), tmp_path / "cache").fingerprint != first.fingerprint
    assert len(list((tmp_path / "cache").glob("*/rows.json"))) == entries + 1


def test_bad_files_are_left_out_and_listed(table: Table, tmp_path: Path) -> None:
    bad = tmp_path / "SECRETNAME.dcm"
    bad.write_bytes(b"not a scan")
    mixed = Table((table.samples[0], Sample(bad, "SECRETNAME", 0), table.samples[1]))
    made = _load(mixed, tmp_path / "cache")
    assert made.patients == (table.samples[0].patient, table.samples[1].patient)
    assert len(made.faults) == 1
    assert made.faults[0].startswith(f"{bad}: the input is text")  # told to who named the folder
    stored = [p.read_bytes() for p in (tmp_path / "cache").glob("*/*")]
    assert stored
    assert not any(b"SECRETNAME" in content for content in stored)  # and kept nowhere
    with pytest.raises(MedadError, match="none of 1 files could be used"):
        _load(Table((Sample(bad, "x", 0),)), tmp_path / "cache")
    assert not [p for p in (tmp_path / "cache").iterdir() if p.name.startswith(".")]


def test_a_whole_layout_loads(cq500: Path, tmp_path: Path) -> None:
    made = _load(read_table(f"cq500:{cq500}"), tmp_path)
    assert made.tensor.shape == (96, 1, 64, 64)
    assert made.labels.sum() == 16
    assert len(made.rows({"CQ500CT0"})) == 2
    assert len(made.rows({"CQ500CT0"}, label=1)) == 0
