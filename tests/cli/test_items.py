"""What a command line names: files, series in folders, and what lies beside them."""

from __future__ import annotations

import gzip
import zipfile
from collections.abc import Callable
from pathlib import Path

import click
import nibabel
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import FileDataset
from pydicom.uid import RTStructureSetStorage, XRayRadiationDoseSRStorage

from medad_serve.cli.items import Item, items_of

Slices = Callable[..., Path]
"""Writes slices of a series into a folder, under names."""


@pytest.fixture
def written(make_ct: Callable[..., FileDataset], make_slice: Callable[..., np.ndarray]) -> Slices:
    def write(folder: Path, *names: str, series: str = "A", number: int | None = 1) -> Path:
        for instance, name in enumerate(names):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            ds = make_ct(make_slice(instance, size=16), instance=instance + 1, series=series)
            if number is not None:
                ds.SeriesNumber = number
            ds.save_as(folder / name, enforce_file_format=True)
        return folder

    return write


def filled(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def test_files_are_items_of_their_own(tmp_path: Path) -> None:
    files = [tmp_path / "b", tmp_path / "a"]
    assert items_of(files) == [Item(file, (file,)) for file in files]


def test_the_slices_of_a_folder_are_one_series_sorted_by_name(tmp_path: Path, written: Slices) -> None:
    folder = filled(written(tmp_path, "2.dcm", "1"), ".hidden", "DICOMDIR", "Thumbs.db")
    assert items_of([folder]) == [Item(folder, (folder / "1", folder / "2.dcm"), is_series=True)]


def test_each_folder_of_a_study_is_a_series(tmp_path: Path, written: Slices) -> None:
    written(tmp_path, "study/axial/1", "study/axial/2", "study/localiser/1", "study/.cache/1", "other/1")
    items = items_of([tmp_path / "study", tmp_path / "other"])
    assert [item.path.name for item in items] == ["axial", "localiser", "other"]
    assert [len(item.files) for item in items] == [2, 1, 1]


def test_series_in_one_folder_are_told_apart_by_their_uid(tmp_path: Path, written: Slices) -> None:
    folder = tmp_path / "study"
    written(folder, "1", "4", "5", series="A", number=301)
    written(folder, "2", "3", series="B", number=7)
    items = items_of([folder])
    assert [(str(item.path), [file.name for file in item.files]) for item in items] == [
        (f"{folder}#301", ["1", "4", "5"]),
        (f"{folder}#7", ["2", "3"]),
    ]
    assert all(item.is_series for item in items)


@pytest.mark.parametrize("number", [None, 5])
def test_series_without_numbers_of_their_own_are_counted(tmp_path: Path, written: Slices, number: int | None) -> None:
    for name in ("1", "2", "3"):
        written(tmp_path / "study", name, series=name, number=number)
    assert [item.path.name for item in items_of([tmp_path / "study"])] == ["study#1", "study#2", "study#3"]


def test_volumes_images_and_packages_are_items_of_their_own(tmp_path: Path, written: Slices) -> None:
    written(tmp_path, "b", "c")
    np.save(tmp_path / "a.npy", np.zeros((2, 2)))
    (tmp_path / "d").write_bytes(bytes(nibabel.Nifti1Image(np.zeros((2, 2, 2)), np.eye(4)).to_bytes()))
    (tmp_path / "e").write_bytes(gzip.compress((tmp_path / "d").read_bytes()))
    (tmp_path / "f").write_bytes(b"\x89PNG\r\n\x1a\n")
    with zipfile.ZipFile(tmp_path / "g", "w") as archive:
        archive.write(tmp_path / "b")
    filled(tmp_path, "damaged.png", "unsupported.tif")
    items = items_of([tmp_path])
    assert [item.path.name for item in items if not item.is_series] == [
        "a.npy", "d", "damaged.png", "e", "f", "g", "unsupported.tif",
    ]  # fmt: skip
    assert [item for item in items if item.is_series] == [Item(tmp_path, (tmp_path / "b", tmp_path / "c"), True)]


def test_what_is_no_image_is_left_out_and_said_to_be(
    tmp_path: Path, written: Slices, capsys: pytest.CaptureFixture[str]
) -> None:
    filled(written(tmp_path, "1"), "notes.txt", "report.csv")
    assert [item.files for item in items_of([tmp_path])] == [(tmp_path / "1",)]
    assert capsys.readouterr().err == f"Left out of {tmp_path}: 2 files of other kinds: notes.txt, report.csv\n"


def test_dicom_objects_without_pixels_are_left_out_of_a_folder_and_named(
    tmp_path: Path, written: Slices, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = written(tmp_path, "1", "sub/1")
    for name, storage in (("dose.dcm", XRayRadiationDoseSRStorage), ("sub/structures", RTStructureSetStorage)):
        ds = dcmread(folder / "1")
        for keyword in ("Rows", "Columns", "PixelData"):
            delattr(ds, keyword)
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = storage
        ds.save_as(folder / name)
    assert [item.files for item in items_of([folder])] == [(folder / "1",), (folder / "sub/1",)]
    said = f"Left out of {folder}: 2 files of DICOM without pixels: dose.dcm, sub/structures\n"
    assert capsys.readouterr().err == said
    assert items_of([folder / "dose.dcm"]) == [Item(folder / "dose.dcm", (folder / "dose.dcm",))]


@pytest.mark.parametrize("keyword", ["PatientID", "StudyInstanceUID"])
@pytest.mark.parametrize("has_series", [True, False])
def test_patients_and_studies_in_one_folder_are_told_apart(
    tmp_path: Path, written: Slices, keyword: str, has_series: bool
) -> None:
    folder = written(tmp_path / "study", "1", "2", "3")
    for file in folder.iterdir():
        ds = dcmread(file)
        if not has_series:
            del ds.SeriesInstanceUID
        if file.name == "2":
            setattr(ds, keyword, "1.2.3")
        ds.save_as(file)
    assert [(item.path.name, [file.name for file in item.files]) for item in items_of([folder])] == [
        ("study#1", ["1", "3"]),
        ("study#2", ["2"]),
    ]


@pytest.mark.parametrize("end", [370, 700, 960])
def test_an_image_cut_short_before_its_pixels_is_answered(tmp_path: Path, written: Slices, end: int) -> None:
    folder = written(tmp_path, "1")
    (folder / "1").write_bytes((folder / "1").read_bytes()[:end])
    [item] = items_of([folder])
    assert item.files == (folder / "1",)


def test_a_damaged_file_goes_with_the_only_series_and_else_alone(tmp_path: Path, written: Slices) -> None:
    folder = written(tmp_path / "study", "1", "3")
    (folder / "2").write_bytes((folder / "1").read_bytes()[:300])  # ends within an element
    [item] = items_of([folder])
    assert [file.name for file in item.files] == ["1", "2", "3"]
    written(folder, "4", series="B", number=2)
    assert [(item.path.name, len(item.files)) for item in items_of([folder])] == [
        ("study#1", 2), ("2", 1), ("study#2", 1),
    ]  # fmt: skip


def test_files_that_state_no_series_are_one(tmp_path: Path, written: Slices) -> None:
    for file in written(tmp_path, "1", "2").iterdir():
        ds = dcmread(file)
        del ds.SeriesInstanceUID, ds.StudyInstanceUID, ds.PatientID
        ds.save_as(file)
    assert items_of([tmp_path]) == [Item(tmp_path, (tmp_path / "1", tmp_path / "2"), is_series=True)]


def test_a_file_with_the_ending_of_dicom_and_nothing_in_it_is_answered(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").touch()
    [item] = items_of([tmp_path])
    assert item.files == (tmp_path / "a.dcm",)


def test_the_folder_that_one_is_in_has_a_name(tmp_path: Path, written: Slices, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, "1", series="A", number=1)
    written(tmp_path, "2", series="B", number=2)
    monkeypatch.chdir(tmp_path)
    assert [item.path.name for item in items_of([Path()])] == [f"{tmp_path.name}#1", f"{tmp_path.name}#2"]


def test_a_list_of_files_is_one_series_where_asked(tmp_path: Path) -> None:
    filled(tmp_path, "a/1", "a/2", "b")
    [item] = items_of([tmp_path / "b", tmp_path / "a"], one_series=True)
    assert item.files == (tmp_path / "b", tmp_path / "a" / "1", tmp_path / "a" / "2")
    assert item.label == f"{tmp_path / 'b'} (3 files)"
    assert item.facts() == {"file": str(tmp_path / "b"), "files": 3}


def test_a_folder_without_files_is_a_usage_error(tmp_path: Path) -> None:
    folder = filled(tmp_path, ".hidden", "sub/.hidden")
    for one_series in (False, True):
        with pytest.raises(click.UsageError, match="holds no files"):
            items_of([folder], one_series=one_series)
    with pytest.raises(click.UsageError, match="holds no files that are scored"):
        items_of([filled(tmp_path, "notes.txt")])
