"""Files and folders of a command line."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from medad_serve.cli.items import Item, items_of


def filled(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def test_files_are_items_of_their_own(tmp_path: Path) -> None:
    files = [tmp_path / "b", tmp_path / "a"]
    assert items_of(files) == [Item(file, (file,)) for file in files]


def test_a_folder_is_one_series_sorted_by_name(tmp_path: Path) -> None:
    folder = filled(tmp_path, "2.dcm", "1.dcm", ".hidden", "DICOMDIR", "Thumbs.db")
    assert items_of([folder]) == [Item(folder, (folder / "1.dcm", folder / "2.dcm"), is_series=True)]


def test_each_folder_of_a_study_is_a_series(tmp_path: Path) -> None:
    filled(tmp_path, "study/axial/1", "study/axial/2", "study/localiser/1", "study/.cache/1", "other/1")
    items = items_of([tmp_path / "study", tmp_path / "other"])
    assert [item.path.name for item in items] == ["axial", "localiser", "other"]
    assert [len(item.files) for item in items] == [2, 1, 1]


def test_a_list_of_files_is_one_series_where_asked(tmp_path: Path) -> None:
    filled(tmp_path, "a/1", "a/2", "b")
    [item] = items_of([tmp_path / "b", tmp_path / "a"], one_series=True)
    assert item.files == (tmp_path / "b", tmp_path / "a" / "1", tmp_path / "a" / "2")
    assert item.label == f"{tmp_path / 'b'} (3 files)"
    assert item.facts() == {"file": str(tmp_path / "b"), "files": 3}


def test_a_folder_without_files_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(click.UsageError, match="holds no files"):
        items_of([filled(tmp_path, ".hidden")])
