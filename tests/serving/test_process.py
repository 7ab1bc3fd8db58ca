from __future__ import annotations

import json
from pathlib import Path

import pytest

from medad_serve.server.process import PID_FILE, PREFIX, STATE, remove_temporary


def _state(tmp_path: Path, target: Path) -> Path:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / STATE).write_text(json.dumps({"temporary": str(target)}))
    return run_dir


@pytest.mark.parametrize("content", [[], [PID_FILE], ["log4j2.xml", "models"]])
def test_a_directory_of_ours_is_removed(tmp_path: Path, content: list[str]) -> None:
    target = tmp_path / f"{PREFIX}abc"
    target.mkdir()
    for name in content:
        (target / name).write_text("x")
    remove_temporary(_state(tmp_path, target), marks=(PID_FILE, "log4j2.xml"))
    assert not target.exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("home", []),
        ("home", [PID_FILE]),
        (f"{PREFIX}sources", ["README.md"]),
        (f"{PREFIX}sources", [".git", "setup.cfg"]),
    ],
)
def test_what_a_state_of_somebody_else_names_stays(tmp_path: Path, name: str, content: list[str]) -> None:
    target = tmp_path / name
    target.mkdir()
    for file in content:
        (target / file).write_text("x")
    remove_temporary(_state(tmp_path, target), marks=(PID_FILE, "log4j2.xml"))
    assert sorted(p.name for p in target.iterdir()) == sorted(content)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    link = tmp_path / f"{PREFIX}abc"
    link.symlink_to(tmp_path / "home", target_is_directory=True)
    remove_temporary(_state(tmp_path, link), marks=(PID_FILE,))
    assert (tmp_path / "home").is_dir()


@pytest.mark.parametrize("text", ["", "[]", '{"temporary": 3}', "{}"])
def test_a_state_that_names_nothing_removes_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / STATE).write_text(text)
    remove_temporary(tmp_path, marks=(PID_FILE,))
    assert [path.name for path in tmp_path.iterdir()] == [STATE]
