from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from medad_serve.data import read_table
from medad_serve.data.volumes import volume_shape
from medad_serve.errors import MedadError


def _volume(path: Path, shape: tuple[int, ...] = (4, 5, 6)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.zeros(shape, np.float32)
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three patients: two levels, two levels in a folder of their own, one."""
    for name in ("vol_p1_L1.npy", "vol_p1_L2.nii.gz", "b/vol_p_2_L1.nii", "b/vol_p_2_L3.npy", "vol_p3_T12.npy"):
        _volume(tmp_path / name)
    return tmp_path


def _write(path: Path, *lines: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


LABELS = ("file,label,kind,severity", "vol_p1_L1.npy,0,,", "vol_p1_L2.nii.gz,1,wedge,0.4", "b/vol_p_2_L1.nii,0,,")


def test_names_alone_make_healthy_patients(root: Path) -> None:
    (root / "readme.md").write_text("x")
    table = read_table(f"volumes:{root}")
    assert table.patients() == {"p_2": 0, "p1": 0, "p3": 0}
    assert len(table.samples) == 5
    assert {s.role for s in table.samples} == {None}
    assert "1 files that are no volumes left out" in table.notes
    assert "there is no labels.csv: every volume counts as healthy" in table.notes


def test_lists_give_label_kind_severity_role_and_mask(root: Path) -> None:
    _write(root / "labels.csv", *LABELS, "vol_p_2_L3,1,crush,2", "vol_p3_T12.npy,0,,")
    _write(root / "test.txt", "p_2", "")
    _write(root / "folds.csv", "patient,fold", "p1,1", "p3,2")
    _volume(root / "masks" / "vol_p_2_L3.npy")
    _volume(root / "masks" / "vol_gone_L3.npy")
    table = read_table(f"volumes:{root}")
    found = {s.path.name: (s.label, s.kind, s.severity, s.role) for s in table.samples}
    assert found == {
        "vol_p1_L1.npy": (0, "", None, "train"),
        "vol_p1_L2.nii.gz": (1, "wedge", 0.4, "train"),
        "vol_p_2_L1.nii": (0, "", None, "test"),
        "vol_p_2_L3.npy": (1, "crush", 2.0, "test"),
        "vol_p3_T12.npy": (0, "", None, "train"),
    }
    assert {s.path.name: s.mask for s in table.samples if s.mask} == {
        "vol_p_2_L3.npy": root / "masks" / "vol_p_2_L3.npy"
    }
    assert table.notes == ("1 masks without a volume left out",)


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        (("vol_p_2_L3.npy,1,,", "vol_p9_L1.npy,0,,"), "labels.csv, line 6, column file: there is no volume vol_p9_L1"),
        (("vol_p_2_L3.npy,1,,",), "labels.csv has no line for .*vol_p3_T12.npy"),
        (("vol_p_2_L3.npy,2,,",), "labels.csv, line 5, column label: must be 0 or 1"),
        (("vol_p_2_L3.npy,,,",), "labels.csv, line 5, column label: is empty"),
        (("vol_p1_L1,1,,",), "labels.csv, line 5, column file: is on line 2 already"),
        (("vol_p_2_L3.npy,1,,bad", "vol_p3_T12,0,,"), "labels.csv, line 5, column severity: is not a number"),
    ],
)
def test_faults_of_labels_are_named(root: Path, lines: tuple[str, ...], fault: str) -> None:
    _write(root / "labels.csv", *LABELS, *lines)
    with pytest.raises(MedadError, match=fault):
        read_table(f"volumes:{root}")


@pytest.mark.parametrize(
    ("folds", "fault"),
    [
        (("p1,1", "p3,2", "p1,2"), "folds.csv, line 4, column patient: p1 is in fold 1 too \\(line 2\\)"),
        (("p1,1", "p_2,2"), "folds.csv, line 3, column patient: p_2 is in test.txt too \\(line 2\\)"),
        (("p1,first",), "folds.csv, line 2, column fold: must be a whole number"),
        (("p7,1",), "folds.csv, line 2, column patient: there is no volume of patient p7"),
    ],
)
def test_a_patient_has_one_place(root: Path, folds: tuple[str, ...], fault: str) -> None:
    _write(root / "test.txt", "", "p_2")
    _write(root / "folds.csv", "patient,fold", *folds)
    with pytest.raises(MedadError, match=fault):
        read_table(f"volumes:{root}")


def test_a_test_patient_without_a_volume_is_named(root: Path) -> None:
    _write(root / "test.txt", "p1", "p8")
    with pytest.raises(MedadError, match=r"test\.txt, line 2: there is no volume of patient p8"):
        read_table(f"volumes:{root}")


def test_one_volume_in_two_files_is_refused(root: Path) -> None:
    _volume(root / "vol_p1_L1.nii.gz")
    with pytest.raises(MedadError, match=r"vol_p1_L1\.npy and .*vol_p1_L1\.nii\.gz are one volume twice"):
        read_table(f"volumes:{root}")


@pytest.mark.parametrize("name", ["vol_p9_L1.npy", "vol_p9_L1.nii", "vol_p9_L1.nii.gz"])
def test_what_is_not_3d_is_named_by_its_header(root: Path, name: str) -> None:
    _volume(root / name, (4, 5, 6, 2))
    with pytest.raises(MedadError, match=f"{name} is 4x5x6x2, not a 3D volume"):
        read_table(f"volumes:{root}")
    (root / name).write_bytes(b"no header")
    with pytest.raises(MedadError, match=f"{name} is no readable volume"):
        read_table(f"volumes:{root}")


def test_only_the_header_is_read(tmp_path: Path) -> None:
    path = _volume(tmp_path / "vol_a_1.npy", (30, 20, 10))
    path.write_bytes(path.read_bytes()[:128])  # the header of this .npy
    assert volume_shape(path) == (30, 20, 10)


def test_pickled_or_complex_values_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "vol_a_1.npy", np.empty((2, 2, 2), object), allow_pickle=True)
    with pytest.raises(MedadError, match="holds object, not real numbers"):
        read_table(f"volumes:{tmp_path}")


def test_a_mask_of_another_size_is_refused(root: Path) -> None:
    _volume(root / "masks" / "vol_p1_L1.npy", (4, 5, 7))
    with pytest.raises(MedadError, match=r"mask .*vol_p1_L1\.npy has another size"):
        read_table(f"volumes:{root}")


def test_a_folder_without_volumes_and_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MedadError, match="holds no volume"):
        read_table(f"volumes:{tmp_path}")
    with pytest.raises(MedadError, match=r"options of layout volumes cannot be used \(normal"):
        read_table(f"volumes:{tmp_path}", {"normal": ["x"]})


def test_folds_are_those_of_the_table(tmp_path: Path) -> None:
    for patient in ("a", "b", "c"):
        np.save(tmp_path / f"vol_{patient}_L1.npy", np.zeros((4, 4, 4), np.float32))
    (tmp_path / "folds.csv").write_text("patient,fold\na,2\nb,1\n")
    assert read_table(f"volumes:{tmp_path}").given_folds() == {"a": 2, "b": 1}
