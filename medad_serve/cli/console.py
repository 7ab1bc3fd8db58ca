"""Terminal output shared by the commands: notes to stderr, results to stdout."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.progress import track
from rich.table import Table as RichTable

from medad_serve.data.samples import Sample

out = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 160)
err = Console(stderr=True, soft_wrap=True, highlight=False)

__all__ = ["decoding", "err", "out", "say", "table"]


def say(text: str) -> None:
    """Tell what is being done."""
    err.print(text, markup=False)


def decoding(samples: Iterable[Sample], total: int) -> Iterator[Sample]:
    """Show the progress of the first decoding of a data set."""
    return iter(track(samples, "decoding", total=total, console=err, transient=True, disable=not err.is_terminal))


def table(title: str, *columns: str) -> RichTable:
    """Return an empty table in the house style."""
    made = RichTable(title=title, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        made.add_column(column, no_wrap=column == columns[0])
    return made
