"""CSV files that describe a data set, read strictly: every fault is one line naming file, line and column."""

from __future__ import annotations

import csv
import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TextIO

from medad_serve.errors import MedadError


@dataclass(frozen=True)
class Row:
    """The cells of one line, stripped, by column."""

    file: Path
    line: int
    cells: dict[str, str]

    def get(self, column: str) -> str:
        """Return a cell, empty where the file has no such column."""
        return self.cells.get(column, "")

    def fail(self, column: str, reason: str, hint: str) -> NoReturn:
        """Refuse the row."""
        raise MedadError(f"{self.file}, line {self.line}, column {column}: {reason}", hint)

    def need(self, column: str) -> str:
        """Return a cell that must not be empty."""
        return self.get(column) or self.fail(column, "is empty", "Fill it in")

    def number(self, column: str) -> float | None:
        """Return a finite number, None where the cell is empty."""
        if not (text := self.get(column)):
            return None
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        return value if math.isfinite(value) else self.fail(column, "is not a number", "Write e.g. 0.5")


@dataclass(frozen=True)
class Sheet:
    """A CSV file: its columns and rows in their order."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]


def read_sheet(path: Path, required: Collection[str]) -> Sheet:
    """Read a comma-separated file with a header line; empty lines are skipped.

    Raises MedadError where it cannot be read, a required column is missing, two have one name, or a line has
    more or fewer cells than the header.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return _parse(path, file, required)
    except FileNotFoundError:
        raise MedadError(f"there is no file {path}", "Name the CSV itself, or write it there") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise MedadError(f"{path} cannot be read ({type(error).__name__})", "Write it as CSV in UTF-8") from None


def _parse(path: Path, file: TextIO, required: Collection[str]) -> Sheet:
    lines = csv.reader(file, strict=True)
    columns = tuple(name.strip() for name in next(lines, []))
    missing = [name for name in required if name not in columns]
    if missing:
        raise MedadError(f"{path}, line 1: there is no column {missing[0]}", f"Begin with e.g. {','.join(required)}")
    twice = [name for name in columns if columns.count(name) > 1]
    if twice:
        raise MedadError(f"{path}, line 1: column {twice[0]} is there twice", "Keep one of them")
    rows = []
    for cells in lines:
        line = lines.line_num
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(columns):
            where = columns[len(cells)] if len(cells) < len(columns) else "beyond the last"
            raise MedadError(
                f"{path}, line {line}, column {where}: the line has {len(cells)} cells, the header {len(columns)}",
                "Quote cells that hold a comma",
            )
        rows.append(Row(path, line, dict(zip(columns, (cell.strip() for cell in cells), strict=True))))
    return Sheet(columns, tuple(rows))


def only_once(row: Row, column: str, key: str, seen: dict[str, int]) -> None:
    """Refuse a key that an earlier line has, naming both lines."""
    if key in seen:
        row.fail(column, f"is on line {seen[key]} already", "Keep one of the lines")
    seen[key] = row.line
