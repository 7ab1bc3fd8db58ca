"""What every writer of phantoms does with its folder: refuse what cannot be, write patients in parallel, tabulate."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from medad_serve.errors import MedadError

Row = dict[str, object]

TEST_SHARE = 0.22
"""Of the healthy patients, where the data set itself says who tests; of the abnormal ones it is half."""


def refuse_impossible(out: Path, *, healthy: int, abnormal: int, slices: int) -> None:
    """Raise MedadError where a count cannot be written, or where ``out`` is a file or holds anything."""
    if healthy < 0 or abnormal < 0 or healthy + abnormal < 1 or slices < 1:
        raise MedadError(
            f"cannot write {healthy} healthy and {abnormal} abnormal patients of {slices} slices",
            "Ask for at least one patient of at least one slice",
        )
    if out.is_dir():
        if any(out.iterdir()):
            raise MedadError(f"{out} is not empty", "Name a new or an empty folder, or empty this one first")
    elif out.exists() or out.is_symlink():
        raise MedadError(f"{out} is not a folder", "Name a new or an empty folder")


def kinds_and_tests(
    order: np.random.Generator, healthy: int, abnormal: int, kinds: tuple[str, ...]
) -> list[tuple[str, bool]]:
    """Return each patient's kind ("" for healthy) and whether they test, shuffled: a number tells nothing.

    Abnormal patients take the kinds in turn, and half of each kind tests. An odd one out tests in the first,
    third ... kind and trains in the others. Of two or more healthy patients at least one tests.
    """
    tests = max(round(TEST_SHARE * healthy), int(healthy > 1))
    dealt = [("", patient < tests) for patient in range(healthy)]
    for number, kind in enumerate(kinds):
        count = len(range(number, abnormal, len(kinds)))
        dealt += [(kind, patient < (count + (number + 1) % 2) // 2) for patient in range(count)]
    return [dealt[place] for place in order.permutation(len(dealt))]


def write_patients(write: Callable[[int], list[Row]], patients: int) -> list[Row]:
    """Call ``write`` for each patient, some at a time; return all their rows in the order of the patients.

    Drawing and writing spend their time in NumPy, OpenCV and the system, outside the interpreter's lock.
    """
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        return [row for rows in pool.map(write, range(patients)) for row in rows]


def write_csv(path: Path, columns: list[str], rows: Iterable[Row]) -> None:
    """Write a table with a header, lines ended as on Unix."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
