from __future__ import annotations

import csv
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medad_serve.data import Table, read_table
from medad_serve.errors import MedadError

HEAD = "path,label,patient,split,mask,severity,kind"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png", "c.png", "masks/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert cv2.imwrite(str(tmp_path / "masks" / "b.png"), np.ones((4, 4), np.uint8))
    return tmp_path


def _table(root: Path, *lines: str) -> Path:
    path = root / "table.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_every_column_is_read(root: Path) -> None:
    path = _table(root, HEAD, "a.png,0,p1,train,,,", "b.png,1,p2,Test,masks/b.png,1.5,CNV", "", "c.png,1,p3,,,,")
    for source in (path, root):
        healthy, marked, plain = read_table(f"csv:{source}").samples
        assert (healthy.path, healthy.label, healthy.patient, healthy.role) == (root / "a.png", 0, "p1", "train")
        assert (marked.label, marked.role, marked.kind, marked.severity) == (1, "test", "CNV", 1.5)
        assert marked.mask == root / "masks/b.png"
        assert (plain.role, plain.mask, plain.severity, plain.kind) == (None, None, None, "")


def test_class_names_become_label_and_kind(root: Path) -> None:
    _table(root, "path,label", "a.png,Normal", "b.png,DME", "c.png,0")
    table = read_table(f"csv:{root}")
    assert [(s.label, s.kind) for s in table.samples] == [(0, ""), (1, "DME"), (0, "")]
    assert table.notes == ("table.csv has no column patient: each file counts as a patient of its own",)
    assert len(table.patients()) == 3
    other = read_table(f"csv:{root}", {"normal": "dme"})
    assert [(s.label, s.kind) for s in other.samples] == [(1, "Normal"), (0, ""), (0, "")]


def test_unknown_columns_are_said(root: Path) -> None:
    _table(root, "path,label,patient,age,site", "a.png,0,p,60,x")
    assert read_table(f"csv:{root}").notes == ("columns of table.csv not used: age, site",)


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        (["label,patient"], "line 1: there is no column path"),
        (["path,label,label"], "line 1: column label is there twice"),
        ([HEAD, "none.png,0,p,,,,"], "line 2, column path: there is no such file"),
        ([HEAD, "masks,0,p,,,,"], "line 2, column path: there is no such file"),
        ([HEAD, "a.png,0,p,,,,", ",0,p,,,,"], "line 3, column path: is empty"),
        ([HEAD, "a.png,,p,,,,"], "line 2, column label: is empty"),
        ([HEAD, "a.png,2,p,,,,"], "line 2, column label: must be 0, 1 or the name of a class"),
        ([HEAD, "a.png,nan,p,,,,"], "line 2, column label: must be 0, 1 or the name of a class"),
        ([HEAD, "a.png,0,,,,,"], "line 2, column patient: is empty"),
        ([HEAD, "a.png,0,p,tset,,,"], "line 2, column split: is none of the splits"),
        ([HEAD, "a.png,0,p,train,,,", "b.png,0,p,test,,,"], "line 3, column split: the patient is in train on line 2"),
        ([HEAD, "a.png,1,p,,none.png,,"], "line 2, column mask: there is no such file"),
        ([HEAD, "a.png,1,p,,,high,"], "line 2, column severity: is not a number"),
        ([HEAD, "a.png,1,p,,,inf,"], "line 2, column severity: is not a number"),
        ([HEAD, "a.png,0,p,,,,", "masks/../a.png,0,p,,,,"], "line 3, column path: is on line 2 already"),
        ([HEAD, "a.png,0"], "line 2, column patient: the line has 2 cells, the header 7"),
        ([HEAD, "a.png,0,p,,,,,x"], "line 2, column beyond the last: the line has 8 cells"),
        ([HEAD, "", '"a.png",0,"p\nq",,,,', "b.png,x"], "line 5, column patient: the line has 2 cells"),
        ([HEAD], "lists no file"),
    ],
)
def test_a_fault_names_file_line_and_column(root: Path, lines: list[str], fault: str) -> None:
    path = _table(root, *lines)
    with pytest.raises(MedadError) as error:
        read_table(f"csv:{path}")
    assert str(error.value).startswith(str(path))
    assert fault in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_no_csv_is_refused(root: Path) -> None:
    (root / "table.csv").write_bytes(b"path,label\n\xff\xfe,0\n")
    with pytest.raises(MedadError, match="cannot be read"):
        read_table(f"csv:{root}")
    with pytest.raises(MedadError, match="there is no file .*table.csv"):
        read_table(f"csv:{root / 'masks'}")
    with pytest.raises(MedadError, match="not a folder"):
        read_table(f"csv:{root / 'none.csv'}")
    with pytest.raises(MedadError, match="not a folder"):
        read_table(f"volumes:{root / 'a.png'}")  # a layout of folders takes no file


ODD = st.text(max_size=12) | st.sampled_from(["", "a\0b", "~x", "../a.png", "1e3", "nan", '"', "a,b"])
USUAL = (
    st.sampled_from(["a.png", "b.png", "c.png", " a.png "]),
    st.sampled_from(["0", "1", "normal", "GOOD", "CNV", "2"]),
    st.sampled_from(["p1", "p2", "p,3", 'p"4', "p\n5"]),
    st.sampled_from(["", "train", "Test", "val", "none"]),
    st.sampled_from(["", "b.png"]),
    st.sampled_from(["", "0.5", "-1e-3", "inf"]),
    st.sampled_from(["", "crush"]),
)
ROW = st.tuples(*(st.one_of(usual, usual, usual, usual, usual, ODD) for usual in USUAL))


@settings(max_examples=300)
@given(st.lists(ROW, max_size=4))
def test_any_cells_are_read_as_written_or_refused_in_one_line(rows: list[tuple[str, ...]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in ("a.png", "b.png", "c.png"):
            (root / name).write_bytes(b"x")
        with (root / "table.csv").open("w", newline="", encoding="utf-8", errors="surrogatepass") as file:
            csv.writer(file).writerows([HEAD.split(","), *rows])
        refusal, table = "", Table(())
        try:
            table = read_table(f"csv:{root}")
        except MedadError as error:
            refusal = str(error)
        if refusal:
            assert root.name in refusal
            assert "\n" not in refusal
            return
        kept = [[cell.strip() for cell in row] for row in rows if any(cell.strip() for cell in row)]
        assert [s.patient for s in table.samples] == [row[2] for row in kept]
        for sample, row in zip(table.samples, kept, strict=True):
            assert sample.path.resolve() == (root / row[0]).resolve()
            healthy = row[1] == "0" or row[1].lower() in ("normal", "good", "healthy")
            assert sample.label == (0 if healthy else 1)
            assert (sample.role or "") in (row[3].lower(), {"val": "validation"}.get(row[3].lower()))
            assert sample.severity is None if not row[5] else sample.severity == float(row[5])


def test_a_mask_of_another_size_is_refused(root: Path) -> None:
    for name, size in {"b.png": (20, 30), "masks/b.png": (30, 20)}.items():
        assert cv2.imwrite(str(root / name), np.zeros(size, np.uint8))
    _table(root, HEAD, "b.png,1,p,,masks/b.png,,")
    with pytest.raises(MedadError, match=r"mask .*masks/b\.png is 30 x 20 .*b\.png is 20 x 30"):
        read_table(f"csv:{root}")
