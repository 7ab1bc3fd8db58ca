"""What a command line names to be scored: files one by one, and what folders hold."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

LITTER = ("DICOMDIR", "Thumbs.db", "desktop.ini")
"""Beside hidden files, what folders hold that is no slice."""


@dataclass(frozen=True)
class Item:
    """What is answered at once: one file, or the files of one series."""

    path: Path
    files: tuple[Path, ...]
    is_series: bool = False

    @property
    def source(self) -> Path | tuple[Path, ...]:
        """What client and predictor take."""
        return self.files if self.is_series else self.path

    @property
    def label(self) -> str:
        """How it is named in a table."""
        return f"{self.path} ({len(self.files)} files)" if self.is_series else str(self.path)

    def facts(self) -> dict[str, object]:
        """How it is named in a JSON line."""
        return {"file": str(self.path), **({"files": len(self.files)} if self.is_series else {})}


def items_of(paths: Sequence[Path], *, one_series: bool = False) -> list[Item]:
    """Return an item for each file, and those that a folder holds, in it or below it.

    Of a folder, the DICOM files of a series are one item, and every other image or volume is one of its own; what is
    neither, and DICOM objects without pixels, are left out and named. With ``one_series`` everything named is one
    series. Raises UsageError for folders without anything to score.
    """
    if one_series:
        files = tuple(file for path in paths for file in (_files_below(path) if path.is_dir() else (path,)))
        return [Item(paths[0], files, is_series=True)]
    items: list[Item] = []
    for path in paths:
        items += _in_folder(path) if path.is_dir() else [Item(path, (path,))]
    return items


def _in_folder(path: Path) -> list[Item]:
    from medad_serve.cli.folders import contents_of, names_of

    items: list[Item] = []
    left_out: list[Path] = []
    without_pixels: list[Path] = []
    for place, files in _folders_below(path):
        found = contents_of(files)
        named = place if place.name not in ("", "..") else place.resolve()
        pairs = zip(names_of(named, found.series), found.series, strict=True)
        series = [Item(name, tuple(each.files), is_series=True) for name, each in pairs]
        items += sorted([*series, *(Item(file, (file,)) for file in found.others)], key=lambda item: item.files[0])
        left_out += found.left_out
        without_pixels += found.without_pixels
    if not items:
        raise click.UsageError(f"{path} holds no files that are scored.")
    _say_left_out(path, left_out, "of other kinds")
    _say_left_out(path, without_pixels, "of DICOM without pixels")
    return items


def _say_left_out(folder: Path, files: Sequence[Path], what: str) -> None:
    if files:
        count = "1 file" if len(files) == 1 else f"{len(files)} files"
        names = ", ".join(str(file.relative_to(folder)) for file in files)
        click.echo(f"Left out of {folder}: {count} {what}: {names}", err=True)


def _files_below(folder: Path) -> Iterator[Path]:
    found = False
    for _, files in _folders_below(folder):
        found = True
        yield from files
    if not found:
        raise click.UsageError(f"{folder} holds no files.")


def _folders_below(folder: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Yield each folder that holds files, and those, sorted by name."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        kept = sorted(name for name in names if not name.startswith(".") and name not in LITTER)
        if kept:
            yield Path(place), [Path(place) / name for name in kept]
