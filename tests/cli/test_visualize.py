from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from medad_serve.cli.main import cli
from medad_serve.errors import MedadError


def test_visualize_prints_where_the_report_is(run_path: Path, tmp_path: Path) -> None:
    arguments = ["visualize", str(run_path), "--out", str(tmp_path / "seen"), "--count", "2"]
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    assert (tmp_path / "seen" / "report.html").is_file()


@pytest.mark.parametrize(("arguments", "code"), [(["--count", "0"], 2), (["--nothing"], 2)])
def test_usage_is_checked(arguments: list[str], code: int, run_path: Path) -> None:
    assert CliRunner().invoke(cli, ["visualize", str(run_path), *arguments]).exit_code == code


def test_what_is_no_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(MedadError, match="is no folder"):
        CliRunner().invoke(cli, ["visualize", str(tmp_path / "none")], catch_exceptions=False)
