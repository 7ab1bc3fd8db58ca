from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from medad_serve.calibration import normals_needed
from medad_serve.data import Given, SplitSettings, read_table, split_patients
from medad_serve.data.masks import header_size, read_mask
from medad_serve.errors import MedadError


def _image(path: Path, size: tuple[int, int] = (24, 32), value: int = 7) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full(size, value, np.uint8))
    return path


def _tree(root: Path, *names: str) -> Path:
    for name in names:
        _image(root / name)
    return root


def _mvtec(root: Path) -> Path:
    return _tree(
        root,
        "train/good/000.png",
        "train/good/001.png",
        "test/good/000.png",
        "test/crack/000.png",
        "test/hole/000.png",
        "ground_truth/crack/000_mask.png",
        "ground_truth/hole/000_mask.png",
    )


def test_folders_give_roles_kinds_and_masks(tmp_path: Path) -> None:
    table = read_table(f"mvtec:{_mvtec(tmp_path)}")
    found = {
        s.path.relative_to(tmp_path).as_posix(): (s.role, s.label, s.kind, s.mask and s.mask.parent.name)
        for s in table.samples
    }
    assert found == {
        "train/good/000.png": ("train", 0, "", None),
        "train/good/001.png": ("train", 0, "", None),
        "test/crack/000.png": ("test", 1, "crack", "crack"),
        "test/good/000.png": ("test", 0, "", None),
        "test/hole/000.png": ("test", 1, "hole", "hole"),
    }
    assert table.notes == ()


def test_files_of_one_number_are_not_one_patient(tmp_path: Path) -> None:
    table = read_table(f"mvtec:{_mvtec(tmp_path)}")
    assert len(table.patients()) == len(table.samples) == 5


def test_faults_without_masks_are_read_without_a_word(tmp_path: Path) -> None:
    table = read_table(f"mvtec:{_tree(tmp_path, 'train/good/a.png', 'test/good/b.png', 'test/fault/c.png')}")
    assert [(s.label, s.kind, s.mask) for s in table.samples if s.role == "test"] == [(1, "fault", None), (0, "", None)]
    assert table.notes == ()


def test_a_missing_mask_is_said(tmp_path: Path) -> None:
    (_mvtec(tmp_path) / "ground_truth" / "hole" / "000_mask.png").unlink()
    table = read_table(f"mvtec:{tmp_path}")
    assert table.notes == ("1 images of defects have no mask below ground_truth, e.g. test/hole/000.png",)


def test_a_mask_of_another_size_is_refused_naming_both(tmp_path: Path) -> None:
    _image(_mvtec(tmp_path) / "ground_truth" / "hole" / "000_mask.png", (32, 24))
    with pytest.raises(MedadError) as caught:
        read_table(f"mvtec:{tmp_path}")
    text = str(caught.value)
    assert "ground_truth/hole/000_mask.png is 32 x 24" in text
    assert "test/hole/000.png is 24 x 32" in text


def test_a_mask_that_is_cut_short_is_refused_before_training(tmp_path: Path) -> None:
    mask = _image(_mvtec(tmp_path) / "ground_truth" / "hole" / "000_mask.png")
    mask.write_bytes(mask.read_bytes()[:50])
    with pytest.raises(MedadError, match="000_mask.png cannot be read"):
        read_table(f"mvtec:{tmp_path}")


def test_exposures_of_a_tile_are_one_patient_that_only_tests(tmp_path: Path) -> None:
    _tree(
        tmp_path,
        "train/good/exp0_num_1.jpg",
        "train/good/exp2_num_1.jpg",
        "train/good/exp0_num_7.jpg",
        "test/good/exp1_num_7.jpg",
        "test/fray/exp3_num_7.jpg",
    )
    table = read_table(f"mvtec:{tmp_path}")
    assert table.patients() == {"num_1": 0, "num_7": 1}
    assert table.given_roles() == {"num_1": "train", "num_7": "test"}
    assert sorted((s.label, s.path.name) for s in table.samples if s.patient == "num_7") == [
        (0, "exp1_num_7.jpg"),
        (1, "exp3_num_7.jpg"),
    ]
    assert table.notes == ("1 images of train left out, e.g. exp0_num_7.jpg: their patients are in test too",)


def test_a_pattern_groups_files(tmp_path: Path) -> None:
    _tree(tmp_path, "train/good/p1-a.png", "train/good/p1-b.png", "test/good/p2-a.png", "test/bad/p3-a.png")
    table = read_table(f"mvtec:{tmp_path}", {"patient": r"(p\d)-"})
    assert table.patients() == {"p1": 0, "p3": 1, "p2": 0}


def test_another_name_of_healthy_is_an_option(tmp_path: Path) -> None:
    _tree(tmp_path, "train/ok/1.png", "test/ok/2.png", "test/bad/3.png")
    with pytest.raises(MedadError, match=r"is known as healthy: ok.*data_options\.normal"):
        read_table(f"mvtec:{tmp_path}")
    assert [s.label for s in read_table(f"mvtec:{tmp_path}", {"normal": "ok"}).samples] == [0, 1, 0]


def test_classes_choose_folders(tmp_path: Path) -> None:
    table = read_table(f"mvtec:{_mvtec(tmp_path)}", {"classes": ["good", "hole"]})
    assert {s.kind for s in table.samples} == {"", "hole"}
    with pytest.raises(MedadError, match=r"no class folder fray.*crack, good, hole"):
        read_table(f"mvtec:{tmp_path}", {"classes": ["good", "fray"]})


def test_folders_that_are_missing_or_empty_are_named(tmp_path: Path) -> None:
    with pytest.raises(MedadError, match="has no folder train"):
        read_table(f"mvtec:{tmp_path}")
    (_mvtec(tmp_path) / "test" / "fray").mkdir()
    with pytest.raises(MedadError, match="test/fray holds no image"):
        read_table(f"mvtec:{tmp_path}")


def test_severity_is_read_from_its_sheet(tmp_path: Path) -> None:
    (_mvtec(tmp_path) / "severity.csv").write_text("path,severity\ntest/crack/000.png,3.5\ntest/good/000.png,0\n")
    graded = {s.path.parent.name: s.severity for s in read_table(f"mvtec:{tmp_path}").samples if s.role == "test"}
    assert graded == {"crack": 3.5, "good": 0.0, "hole": None}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("test/crack/9.png,1", "line 2, column path: no image"),
        ("test/crack/000.png,-1", "line 2, column severity: must not be negative"),
        ("test/crack/000.png,bad", "line 2, column severity: is not a number"),
        ("test/crack/000.png,", "line 2, column severity: is empty"),
        ("test/crack/000.png,1\ntest/crack/000.png,2", "line 3, column path: is on line 2 already"),
    ],
)
def test_a_sheet_that_fits_no_image_is_refused(tmp_path: Path, line: str, reason: str) -> None:
    (_mvtec(tmp_path) / "severity.csv").write_text(f"path,severity\n{line}\n")
    with pytest.raises(MedadError, match=reason):
        read_table(f"mvtec:{tmp_path}")


def test_training_images_divide_and_every_defect_tests(tmp_path: Path) -> None:
    names = [f"train/good/{i}.png" for i in range(40)]
    table = read_table(f"mvtec:{_tree(tmp_path, *names, 'test/good/1.png', 'test/hole/1.png', 'test/hole/2.png')}")
    policy = "specificity=0.8"
    split = split_patients(
        table.patients(),
        SplitSettings(),
        method="held_out",
        policy=policy,
        given=Given(table.given_roles(), table.given_folds()),
    )
    assert split.patients("test") == {s.patient for s in table.samples if s.role == "test"}
    sizes = {role: len(split.patients(role)) for role in ("train", "validation", "calibration")}
    assert sum(sizes.values()) == 40
    assert sizes["calibration"] >= normals_needed(policy)
    assert sizes["validation"] > 0


def test_sizes_are_read_from_headers(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 4, 5), np.float32))
    _image(tmp_path / "b.jpg", (17, 33))
    (tmp_path / "c.png").write_bytes(b"no image")
    assert header_size(tmp_path / "a.npy") == (3, 4, 5)
    assert header_size(tmp_path / "b.jpg") == (17, 33)
    assert header_size(tmp_path / "c.png") is None


def test_a_mask_is_what_is_not_zero(tmp_path: Path) -> None:
    drawn = np.zeros((20, 30), np.uint8)
    drawn[2:4, 5] = 1
    colour = np.zeros((20, 30, 3), np.uint8)
    colour[2:4, 5, 2] = 200
    for name, array in {"grey": drawn, "colour": colour}.items():
        assert cv2.imwrite(str(tmp_path / f"{name}.png"), array)
        assert (read_mask(tmp_path / f"{name}.png") == (drawn > 0)).all()
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(MedadError, match=r"mask .*broken\.png cannot be read"):
        read_mask(tmp_path / "broken.png")
