from __future__ import annotations

import csv
from pathlib import Path

import pytest

from medad_serve.data import read_table
from medad_serve.data.cq500 import Cq500Options, choose_series, majority
from medad_serve.errors import MedadError
from medad_serve.training.config import resolve
from medad_serve.training.run import create_run

HEAD = ["name", "Category", *(f"R{r}:{c}" for r in (1, 2, 3) for c in ("ICH", "Fracture", "MidlineShift"))]


def _tree(root: Path, reads: dict[int, list[int]], series: dict[int, list[str]] | None = None) -> Path:
    rows = [HEAD, *([f"CQ500-CT-{n}", "B1", *votes] for n, votes in reads.items())]
    with (root / "reads.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    for n in reads:
        for name in (series or {}).get(n, ["CT Plain"]):
            folder = root / f"CQ500CT{n} CQ500CT{n}" / "Unknown Study" / name
            folder.mkdir(parents=True)
            for i in range(2):
                (folder / f"CT{i:06d}.dcm").write_bytes(b"x")
    return root


def test_labels_follow_the_majority_of_the_readers(tmp_path: Path) -> None:
    _tree(
        tmp_path,
        {
            1: [0, 0, 0, 0, 0, 0, 0, 0, 0],
            2: [1, 0, 0, 1, 0, 0, 0, 0, 0],  # two of three see a bleeding
            3: [1, 0, 0, 0, 0, 0, 0, 0, 0],  # one of three: healthy
            4: [0, 1, 0, 0, 1, 0, 0, 0, 0],  # a fracture alone: left out
            5: [0, 0, 1, 0, 0, 0, 0, 0, 1],  # a shift alone: left out
        },
    )
    table = read_table(f"cq500:{tmp_path}")
    assert table.patients() == {"CQ500CT1": 0, "CQ500CT2": 1, "CQ500CT3": 0}
    assert len(table.samples) == 6
    assert "2 patients with other findings only left out" in table.notes
    everyone = read_table(f"cq500:{tmp_path}", {"others": True})
    assert everyone.patients() == {"CQ500CT1": 0, "CQ500CT2": 1, "CQ500CT3": 0, "CQ500CT4": 1, "CQ500CT5": 1}


def test_ties_of_an_even_number_of_readers_count_as_not_seen() -> None:
    assert not majority(["1", "0"])
    assert majority(["1", "1", "0"])
    assert not majority([])


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["CT Plain", "CT PLAIN THIN", "CT Contrast"], "CT Plain"),
        (["CT 5mm POST CONTRAST", "CT 5mm"], "CT 5mm"),
        (["CT PLAIN THIN", "CT Bone"], "CT PLAIN THIN"),
        (["CT 4cc sec 150cc D3D on", "CT I To S"], "CT I To S"),
        (["CT Thin Plain", "CT Plain 3mm", "CT Plain"], "CT Plain"),
        (["CT POST CONTRAST"], None),
    ],
)
def test_the_plain_series_is_chosen(names: list[str], chosen: str | None) -> None:
    found = choose_series([Path("study") / n for n in names], Cq500Options().series)
    assert (found.name if found else None) == chosen


def test_series_rule_is_configurable(tmp_path: Path) -> None:
    _tree(tmp_path, {1: [0] * 9, 2: [1] * 9}, {n: ["CT Plain", "CT Bone"] for n in (1, 2)})
    table = read_table(f"cq500:{tmp_path}", {"series": ["bone"]})
    assert {s.path.parent.name for s in table.samples} == {"CT Bone"}
    with pytest.raises(MedadError, match="no regular expression"):
        read_table(f"cq500:{tmp_path}", {"series": ["("]})


def test_faults_of_a_data_folder_are_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(MedadError, match="names no data layout"):
        read_table(str(tmp_path))
    with pytest.raises(MedadError, match="not a folder"):
        read_table(f"cq500:{tmp_path / 'none'}")
    with pytest.raises(MedadError, match=r"reads\.csv cannot be read"):
        read_table(f"cq500:{tmp_path}")
    (tmp_path / "reads.csv").write_text("a,b\n1,2\n")
    with pytest.raises(MedadError, match="no reader columns"):
        read_table(f"cq500:{tmp_path}")


def test_an_empty_class_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    _tree(tmp_path / "a", {1: [0] * 9, 2: [0] * 9})
    assert set(read_table(f"cq500:{tmp_path / 'a'}").patients().values()) == {0}  # enough to measure specificity
    with pytest.raises(MedadError, match="no reads of Tumour"):
        read_table(f"cq500:{tmp_path / 'a'}", {"abnormal": "Tumour"})
    watching = ["train.monitor=val/auroc"]
    with pytest.raises(MedadError, match="holds no abnormal patient, which ae with monitor val/auroc needs"):
        create_run(resolve("ae", f"cq500:{tmp_path / 'a'}", None, watching), tmp_path / "runs")
    with pytest.raises(MedadError, match=r"which efficientnet_b0 needs\. Label some as abnormal$"):
        create_run(resolve("efficientnet_b0", f"cq500:{tmp_path / 'a'}", None, []), tmp_path / "runs")
    (tmp_path / "b").mkdir()
    _tree(tmp_path / "b", {1: [1] * 9})
    with pytest.raises(MedadError, match="no healthy scan"):
        read_table(f"cq500:{tmp_path / 'b'}")
