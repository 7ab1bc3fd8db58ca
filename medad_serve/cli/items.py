"""What a command line names to be scored: files one by one, and folders as series."""

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
    """Return an item for each file, and one for each folder that holds files, in a folder named or below it.

    With ``one_series`` everything named is one series. Raises UsageError for folders without any file.
    """
    items: list[Item] = []
    for path in paths:
        if not path.is_dir():
            items.append(Item(path, (path,)))
            continue
        found = list(_series_below(path))
        if not found:
            raise click.UsageError(f"{path} holds no files.")
        items += found
    if one_series:
        files = tuple(file for item in items for file in item.files)
        return [Item(paths[0], files, is_series=True)]
    return items


def _series_below(folder: Path) -> Iterator[Item]:
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        kept = sorted(name for name in names if not name.startswith(".") and name not in LITTER)
        if kept:
            yield Item(Path(place), tuple(Path(place) / name for name in kept), is_series=True)
