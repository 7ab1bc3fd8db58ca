from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from medad_serve.bench.command import command_table, predict_seconds
from medad_serve.errors import MedadError


def test_a_process_is_timed_from_nothing_to_its_answer(artifact: Path) -> None:
    seconds = predict_seconds(artifact)
    assert 0.1 < seconds < 60, "no Python answers sooner"
    assert "medad-serve predict" in command_table({"ae": seconds}).title


def test_an_artifact_without_its_run_is_told(artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(MedadError, match="lies in no run"):
        predict_seconds(Path(shutil.copytree(artifact, tmp_path / "alone")))
