"""The README's commands and the worked example of CONTRIBUTING, run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def _blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def _commands(blocks: list[str]) -> list[str]:
    return [line for block in blocks for line in block.splitlines() if line.strip()]


SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL))


def _run(section: str, work: Path) -> subprocess.CompletedProcess[str]:
    """Run the commands of a section as a reader would, one after the other in one folder."""
    script = "set -e\n" + "\n".join(_commands(_blocks(SECTIONS[section], "bash")))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "TMPDIR": str(work.parent)}
    try:
        done = subprocess.run(
            ["bash", "-c", script], cwd=work, env=environment, capture_output=True, text=True, timeout=540
        )
    finally:
        subprocess.run(["torchserve", "--stop"], cwd=work, env=environment, capture_output=True)
        subprocess.run(["medad-serve", "serve", "--stop"], cwd=work, env=environment, capture_output=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    return done


def test_every_command_of_the_readme_is_in_a_section_that_is_run() -> None:
    assert {title for title, text in SECTIONS.items() if _blocks(text, "bash")} == {"Use it", "Models"}


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder in which the commands of "Use it" ran, which those of "Models" go on in, and what they printed."""
    work = tmp_path_factory.mktemp("readme") / "work"
    work.mkdir()
    return work, _run("Use it", work).stdout


@pytest.mark.server
@pytest.mark.slow
def test_every_command_that_the_readme_begins_with_works(used: tuple[Path, str]) -> None:
    work, said = used
    assert '"policy": "specificity=0.9"' in said  # what curl was answered
    assert list((work / "overlays").glob("*.png"))


@pytest.mark.server
@pytest.mark.slow
def test_every_command_for_the_models_of_the_readme_works(used: tuple[Path, str]) -> None:
    work, _ = used
    _run("Models", work)
    assert (work / "runs" / "vqvae" / "report" / "report.html").is_file() or list(
        work.glob("runs/vqvae/*/report/*.html")
    )
    assert list((work / "errors").glob("*.nii.gz"))
    assert (work / "runs" / "ae-sweep" / "trials.csv").is_file()


def test_make_targets_that_the_readme_names_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(
        re.findall(r"make ([a-z-]+)", " ".join(_blocks(README, "console")) + " ".join(re.findall(r"`[^`]+`", README)))
    )
    assert {"quickstart", "test"} <= named <= targets


def test_error_table_names_every_code_that_the_code_uses() -> None:
    used: set[str] = set()
    for folder in ("medad_serve", "handlers"):
        for file in (ROOT / folder).rglob("*.py"):
            used |= set(re.findall(r"InputError\(\s*(4\d\d)", file.read_text()))
    listed = set(re.findall(r"^\| (4\d\d) \|", README, re.MULTILINE))
    assert used == listed


def test_the_model_of_contributing_passes_the_conformance_suite(tmp_path: Path) -> None:
    """In a process of its own: registering here would add the model to every other test."""
    example = _blocks((ROOT / "CONTRIBUTING.md").read_text(), "python")[0]
    (tmp_path / "linear_example.py").write_text(example)
    suite = ROOT / "tests" / "conformance" / "test_models.py"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            str(suite),
            "-p",
            "linear_example",
            "-k",
            "linear",
            "-p",
            "no:cacheprovider",
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed, done.stdout[-500:]
    assert int(passed[1]) >= suite.read_text().count("\ndef test_")
