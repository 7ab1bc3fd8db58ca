"""A table reads the same as CSV and as Markdown."""

from __future__ import annotations

import csv
import io

import pytest

from medad_serve.bench.tables import Cell, Table, shown

TABLE = Table("t", "Title", ("engine", "ms", "n"), (("a|b", 0.0123456, 1200), ("c", None, 3)))


def test_csv_keeps_every_digit_and_leaves_empty_what_was_not_measured() -> None:
    rows = list(csv.DictReader(io.StringIO(TABLE.csv())))
    assert rows == [{"engine": "a|b", "ms": "0.0123456", "n": "1200"}, {"engine": "c", "ms": "", "n": "3"}]


def test_markdown_aligns_numbers_and_escapes_bars() -> None:
    header, rule, first, second = TABLE.markdown().splitlines()
    assert header == "| engine | ms | n |"
    assert rule == "| --- | ---: | ---: |"
    assert first == "| a\\|b | 0.0123 | 1,200 |"
    assert second == "| c | - | 3 |"


SHOWN: dict[Cell, str] = {1234.5: "1,234", 12.34: "12.3", 1.234: "1.23", 0.01234: "0.0123", 1.2e-6: "1.2e-06", 0.0: "0"}


@pytest.mark.parametrize("value", SHOWN)
def test_numbers_are_shown_to_three_digits(value: Cell) -> None:
    assert shown(value) == SHOWN[value]


def test_truth_is_shown_as_a_word() -> None:
    assert [shown(True), shown(False)] == ["yes", "no"]
