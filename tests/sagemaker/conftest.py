"""A SageMaker container's folders, with class folders of heads as channels."""

from __future__ import annotations

from pathlib import Path

import pytest
from container import HYPERPARAMETERS, write_hyperparameters


@pytest.fixture(scope="session")
def channels(cq500: Path, dicom_files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``train`` and ``test``, each a folder of class folders: 40 healthy and 8 bleeding heads in all."""
    root = tmp_path_factory.mktemp("channels")
    for number, path in enumerate(dicom_files):
        patient = int(path.parts[-4].split("CT")[-1])
        role = "test" if patient % 4 == 0 else "train"
        target = root / role / ("bleed" if patient >= 40 else "normal") / f"P{patient}_{number}.dcm"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(path)
    return root


@pytest.fixture
def container(channels: Path, tmp_path: Path) -> Path:
    """A container's root in which a job can begin."""
    (tmp_path / "input/data").mkdir(parents=True)
    for channel in channels.iterdir():
        (tmp_path / "input/data" / channel.name).symlink_to(channel, target_is_directory=True)
    write_hyperparameters(tmp_path, HYPERPARAMETERS)
    return tmp_path
