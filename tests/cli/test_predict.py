"""What ``medad-serve predict`` prints of answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from medad_serve.cli.items import Item
from medad_serve.cli.predict import _naming_files, _print_table

ANSWER = {"score": 1.0, "p_value": 0.5, "cutoff": 2.0, "anomalous": False}
FAULT = {"error": {"code": 400, "message": "no image"}}


def item(name: str) -> Item:
    return Item(Path(name), (Path(name),))


@pytest.mark.parametrize("name", ["probability", "severity"])
def test_the_table_tells_what_else_the_model_says(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _print_table([item("a"), item("b")], [{**ANSWER, name: 0.25}, FAULT]) == 1
    head, answered, failed = capsys.readouterr().out.splitlines()
    assert head.split() == ["file", "score", "p-value", "cutoff", name, "decision"]
    assert answered.split() == ["a", "1", "0.5", "2", "0.25", "normal"]
    assert failed.split() == ["b", "400", "no", "image"]


def test_the_table_is_as_wide_as_the_answers(capsys: pytest.CaptureFixture[str]) -> None:
    region = {"region": "L1", "score": 1.5, "p_value": 0.25, "anomalous": False}
    assert _print_table([item("a")], [{**ANSWER, "regions": [region]}]) == 0
    head, answered, cut = (line.split() for line in capsys.readouterr().out.splitlines())
    assert head == ["file", "score", "p-value", "cutoff", "decision"]
    assert answered == ["a", "1", "0.5", "2", "normal"]
    assert cut == ["L1", "1.5", "0.25", "normal"]


def test_what_is_left_out_of_a_series_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    files = tuple(Path(name) for name in "abcdef")
    series = Item(Path("scan"), files, is_series=True)
    left_out = [{"source": place, "reason": "of another series"} for place in (1, 2, 3, 5)]
    left_out += [{"source": 4, "reason": "no image"}]
    [answer] = _naming_files([series], [{**ANSWER, "left_out": left_out}])
    assert [part["file"] for part in answer["left_out"]] == ["b", "c", "d", "f", "e"]
    _print_table([series], [answer])
    assert capsys.readouterr().out.splitlines()[2:] == [
        "Left out of scan: b, c, d and 1 more (of another series)",
        "Left out of scan: e (no image)",
    ]


def test_what_is_left_out_of_a_package_is_told_by_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    [answer] = _naming_files([item("a.zip")], [{**ANSWER, "left_out": [{"source": 0, "reason": "no volume"}]}])
    assert answer["left_out"] == [{"source": 0, "reason": "no volume"}]
    _print_table([item("a.zip")], [answer])
    assert capsys.readouterr().out.splitlines()[-1] == "Left out of a.zip: file 0 (no volume)"
