from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from medad_serve.data import load_prepared, read_table
from medad_serve.data.folders import patient_of
from medad_serve.errors import MedadError
from medad_serve.spec import InputSpec, PrepSpec


def _image(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    ok, data = cv2.imencode(path.suffix, np.full((32, 32), value, np.uint8))
    assert ok
    path.write_bytes(data.tobytes())
    return path


def _tree(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        _image(root / name, number)
    return root


def test_a_kermany_tree_has_roles_kinds_and_patients(tmp_path: Path) -> None:
    _tree(
        tmp_path,
        "train/NORMAL/NORMAL-1-1.jpeg",
        "train/NORMAL/NORMAL-1-2.jpeg",
        "train/CNV/CNV-2-1.jpeg",
        "val/NORMAL/NORMAL-3-1.jpeg",
        "val/DME/DME-4-1.jpeg",
        "test/NORMAL/NORMAL-5-1.jpeg",
        "test/DRUSEN/DRUSEN-6-1.jpeg",
    )
    table = read_table(f"folders:{tmp_path}")
    assert table.given_roles() == {
        "1": "train", "2": "train", "3": "validation", "4": "validation", "5": "test", "6": "test"
    }  # fmt: skip
    assert table.patients() == {"1": 0, "2": 1, "3": 0, "4": 1, "5": 0, "6": 1}
    assert {s.patient: s.kind for s in table.samples} == {
        "1": "",
        "2": "CNV",
        "3": "",
        "4": "DME",
        "5": "",
        "6": "DRUSEN",
    }
    assert table.notes == ()


def test_a_patient_of_train_and_test_only_tests(tmp_path: Path) -> None:
    _tree(
        tmp_path,
        "train/NORMAL/NORMAL-1-1.jpeg",
        "train/NORMAL/NORMAL-7-1.jpeg",
        "train/CNV/CNV-7-1.jpeg",
        "val/CNV/CNV-1-9.jpeg",
        "test/NORMAL/NORMAL-7-3.jpeg",
    )
    table = read_table(f"folders:{tmp_path}")
    assert table.given_roles() == {"1": "validation", "7": "test"}
    assert [s.path.name for s in table.samples] == ["NORMAL-7-3.jpeg", "CNV-1-9.jpeg"]
    assert table.notes == (
        "2 images of train left out, e.g. CNV-7-1.jpeg: their patients are in test too",
        "1 images of train left out, e.g. NORMAL-1-1.jpeg: their patients are in validation too",
    )


@pytest.mark.parametrize(
    ("name", "patient"),
    [
        ("CNV-1016042-1.jpeg", "1016042"),
        ("NORMAL-1016042-12.jpeg", "1016042"),  # of another class: the same patient
        ("person1_bacteria_1.jpeg", "person1"),
        ("person1_virus_7_2.jpeg", "person1"),
        ("IM-0001-0001.jpeg", "IM-0001"),
        ("IM-0500-0001-0002.jpeg", "IM-0500"),
        ("NORMAL2-IM-0500-0001.jpeg", "IM-0500"),
        ("healthy_subject1_619DD180.png", "healthy_subject1"),
        ("scan.png", "NORMAL/scan.png"),  # names nobody: of its own
        ("_1.png", "NORMAL/_1.png"),
        ("1.2.840.10008", "NORMAL/1.2.840.10008"),
        ("p7_ct.nii.gz", "p7"),
    ],
)
def test_patients_are_read_from_names(name: str, patient: str) -> None:
    assert patient_of(Path("data/NORMAL") / name, f"NORMAL/{name}", None).patient == patient


def test_guessed_patients_are_said(tmp_path: Path) -> None:
    _tree(tmp_path, "good/a_1.png", "good/a_2.png", "good/lone.png", "crack/lone.png")
    table = read_table(f"folders:{tmp_path}")
    assert table.patients() == {"crack/lone.png": 1, "a": 0, "good/lone.png": 0}
    assert table.notes[0].startswith("the patient of 2 images is what stands before the last underscore")
    assert table.notes[1].startswith("2 images name no patient: each counts as a patient of its own")


def test_a_pattern_reads_name_or_path(tmp_path: Path) -> None:
    _tree(tmp_path, "NORMAL/p1/scan-1.png", "NORMAL/p1/scan-2.png", "SICK/p2/scan-1.png")
    by_path = read_table(f"folders:{tmp_path}", {"patient": r"/(p\d+)/"})
    assert by_path.patients() == {"p1": 0, "p2": 1}
    assert by_path.notes == ()
    by_name = read_table(f"folders:{tmp_path}", {"patient": r"(scan)-(?P<patient>\d)"})
    assert set(by_name.patients()) == {"1", "2"}
    with pytest.raises(MedadError, match=r"scan-1\.png does not fit the pattern"):
        read_table(f"folders:{tmp_path}", {"patient": "(x)"})
    with pytest.raises(MedadError, match="no regular expression"):
        read_table(f"folders:{tmp_path}", {"patient": "("})
    with pytest.raises(MedadError, match="has no group"):
        read_table(f"folders:{tmp_path}", {"patient": "scan"})


def test_classes_and_normals_are_chosen(tmp_path: Path) -> None:
    _tree(tmp_path, "ok/a-1.png", "Healthy/b-1.png", "AMD/c-1.png", "DME/d-1.png")
    table = read_table(f"folders:{tmp_path}", {"normal": "OK", "classes": ["ok", "AMD"]})
    assert [(s.path.parent.name, s.label, s.kind) for s in table.samples] == [("AMD", 1, "AMD"), ("ok", 0, "")]
    assert {s.path.parent.name for s in read_table(f"folders:{tmp_path}").samples if s.label == 0} == {"Healthy"}
    with pytest.raises(MedadError, match=r"no class folder CNV.*AMD, DME, Healthy, ok"):
        read_table(f"folders:{tmp_path}", {"classes": ["CNV"]})
    with pytest.raises(MedadError, match=r"known as healthy: AMD, DME.*data_options\.normal"):
        read_table(f"folders:{tmp_path}", {"classes": ["AMD", "DME"]})


def test_an_empty_class_folder_is_named(tmp_path: Path) -> None:
    _tree(tmp_path, "train/NORMAL/NORMAL-1-1.jpeg")
    (tmp_path / "train" / "DME").mkdir()
    (tmp_path / "train" / "DME" / "Thumbs.db").write_bytes(b"x")
    with pytest.raises(MedadError, match=f"class folder {tmp_path / 'train' / 'DME'} holds no image"):
        read_table(f"folders:{tmp_path}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MedadError, match="holds no class folders"):
        read_table(f"folders:{tmp_path / 'empty'}")


def test_what_is_no_image_is_left_out_and_counted(tmp_path: Path) -> None:
    _tree(tmp_path, "NORMAL/a-1.png")
    folder = tmp_path / "NORMAL"
    (folder / "notes.txt").write_text("x")
    (folder / "index").write_text("x")
    (folder / ".hidden.png").write_bytes(b"x")
    (folder / "1.2.840.113").write_bytes(b"\0" * 128 + b"DICM" + b"rest")
    table = read_table(f"folders:{tmp_path}")
    assert sorted(s.path.name for s in table.samples) == ["1.2.840.113", "a-1.png"]
    assert "2 files that are no images left out" in table.notes


def test_the_images_load(tmp_path: Path) -> None:
    _tree(tmp_path / "data", "NORMAL/NORMAL-1-1.jpeg", "CNV/CNV-2-1.jpeg")
    prep = PrepSpec(size=(16, 16))
    made = load_prepared(read_table(f"folders:{tmp_path / 'data'}"), prep, InputSpec(), root=tmp_path / "cache")
    assert made.tensor.shape == (2, 1, 16, 16)
    assert dict(zip(made.patients, made.labels.tolist(), strict=True)) == {"2": 1, "1": 0}
    assert made.tensor[1] == pytest.approx(0 / 255)
    assert made.tensor[0] == pytest.approx(1 / 255, abs=1e-3)
