from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from medad_serve.errors import MedadError
from medad_serve.models import family
from medad_serve.training.config import resolve
from medad_serve.training.run import create_run


@pytest.fixture(scope="module")
def defects_test(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A data set that keeps every defect for the test."""
    root = tmp_path_factory.mktemp("tiles")
    for place, count in {"train/good": 40, "test/good": 4, "test/hole": 4}.items():
        (root / place).mkdir(parents=True)
        for number in range(count):
            assert cv2.imwrite(str(root / place / f"{number:03}.png"), np.full((32, 32), number, np.uint8))
    return f"mvtec:{root}"


@pytest.mark.parametrize("monitor", ["val/auroc", "val/patient_auprc"])
def test_a_figure_that_takes_defects_cannot_choose_without_them(
    defects_test: str, tmp_path: Path, monitor: str
) -> None:
    with pytest.raises(MedadError, match=rf"every abnormal patient .* none is left to watch {monitor} by"):
        create_run(resolve("ae", defects_test, None, [f"train.monitor={monitor}"]), tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_model_that_learns_from_defects_takes_some(
    defects_test: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = resolve("ae", defects_test, None, [])
    monkeypatch.setattr(type(family("ae").build()), "supervised", True)
    with pytest.raises(MedadError, match="tests or chooses, and ae learns from them"):
        create_run(config, tmp_path)


def test_a_loss_chooses_without_defects(defects_test: str, tmp_path: Path) -> None:
    split = create_run(resolve("ae", defects_test, None, ["calibration.policy=specificity=0.8"]), tmp_path).split
    assert len(split.patients("test")) == 8
    assert len(split.patients("train", "validation", "calibration")) == 40
