"""A table of what was measured, as it is printed, written as CSV and put into documents."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass

Cell = str | int | float | bool | None
NOTHING = "-"
"""Stands in Markdown for what was not measured."""


@dataclass(frozen=True)
class Table:
    """Rows under named columns; numbers keep their full precision until they are shown."""

    name: str
    """Of the file that it is written to, without its ending."""
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def csv(self) -> str:
        """Return it as CSV with a header, full precision, empty where nothing was measured."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(self.rows)
        return text.getvalue()

    def markdown(self) -> str:
        """Return it as a Markdown table, numbers to three digits and aligned to the right."""
        numeric = [all(isinstance(row[i], int | float | None) for row in self.rows) for i in range(len(self.columns))]
        lines = [self.columns, ["---:" if right else "---" for right in numeric], *map(_shown_row, self.rows)]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)

    def shown(self) -> list[tuple[str, ...]]:
        """Return the rows as they are shown."""
        return [_shown_row(row) for row in self.rows]


def _shown_row(row: tuple[Cell, ...]) -> tuple[str, ...]:
    return tuple(map(shown, row))


def shown(value: Cell) -> str:
    """Return a cell as it is shown: numbers to three digits, never in exponents that a reader must count out."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, str):
        return value.replace("|", "\\|")
    return _number(value)


def _number(value: float) -> str:
    """Return a float to three digits: 1,230 and 12.3 and 0.0123, 1.2e-06 below a thousandth."""
    size = abs(value)
    steps: tuple[tuple[float, Callable[[float], str]], ...] = (
        (100, lambda v: f"{v:,.0f}"),
        (10, lambda v: f"{v:.1f}"),
        (1, lambda v: f"{v:.2f}"),
        (1e-3, lambda v: f"{v:.3g}"),
    )
    return next((write(value) for least, write in steps if size >= least), f"{value:.1e}" if value else "0")
