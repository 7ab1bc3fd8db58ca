from __future__ import annotations

import json
from pathlib import Path

import pytest

from medad_serve.errors import MedadError
from medad_serve.sagemaker.container import ROOT_VARIABLE, Container, read_container


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for channel in ("train", "test"):
        (tmp_path / "input/data" / channel).mkdir(parents=True)
    (tmp_path / "input/config").mkdir()
    return tmp_path


def _read(root: Path, **environ: str) -> Container:
    return read_container({ROOT_VARIABLE: str(root), **environ})


def _hyperparameters(root: Path, **values: str) -> None:
    (root / "input/config/hyperparameters.json").write_text(json.dumps(values))


def test_without_variables_the_files_of_sagemaker_are_read(root: Path) -> None:
    _hyperparameters(root, **{"model": "ae", "train.max_epochs": "3", "formats": "onnx, torchscript"})
    found = _read(root)
    assert found.options.model == "ae"
    assert found.options.formats == ("onnx", "torchscript")
    assert found.overrides == ("train.max_epochs=3",)
    assert set(found.channels) == {"train", "test"}
    assert (found.model, found.checkpoints) == (root / "model", root / "checkpoints")


def test_the_variables_of_the_toolkit_come_first(root: Path, tmp_path: Path) -> None:
    _hyperparameters(root, model="vae")
    (tmp_path / "elsewhere").mkdir()
    found = _read(
        root,
        SM_HPS=json.dumps({"model": "ae", "train.max_epochs": 3, "settings.loss": "l2", "sagemaker_program": "x.py"}),
        SM_CHANNEL_TRAIN=str(tmp_path / "elsewhere"),
        SM_MODEL_DIR="/m",
        SM_CHECKPOINT_DIR="/c",
    )
    assert found.options.model == "ae"
    assert found.overrides == ("train.max_epochs=3", "settings.loss=l2")
    assert found.channels == {"train": tmp_path / "elsewhere"}
    assert (found.model, found.checkpoints) == (Path("/m"), Path("/c"))


def test_texts_that_the_sdk_wrote_as_json_are_read(root: Path) -> None:
    _hyperparameters(root, **{"model": '"ae"', "settings.loss": '"l2"', "train.augment.flip": "0.5", "flag": "true"})
    found = _read(root)
    assert found.options.model == "ae"
    assert set(found.overrides) == {"settings.loss=l2", "train.augment.flip=0.5", "flag=true"}


def test_several_channels_are_roles_of_one_data_set(root: Path) -> None:
    (root / "input/data/validation/normal").mkdir(parents=True)
    (root / "input/data/weights").mkdir()
    source = _read(root).data()
    assert source == f"folders:{root}/medad/data"
    assert {p.name: p.resolve() for p in (root / "medad/data").iterdir()} == {
        "train": root / "input/data/train",
        "val": root / "input/data/validation",
        "test": root / "input/data/test",
    }
    assert _read(root).data() == source  # again, over the links


def test_one_channel_is_a_whole_data_set_of_any_layout(root: Path) -> None:
    (root / "input/data/test").rmdir()
    _hyperparameters(root, layout="mvtec")
    assert _read(root).data() == f"mvtec:{root}/input/data/train"
    (root / "input/data/train").rename(root / "input/data/heads")
    assert _read(root).data() == f"mvtec:{root}/input/data/heads"


def test_other_layouts_take_one_channel(root: Path) -> None:
    _hyperparameters(root, layout="csv")
    with pytest.raises(MedadError, match="layout csv takes one channel"):
        _read(root).data()


def test_two_channels_of_one_role_are_refused(root: Path) -> None:
    (root / "input/data/training").mkdir()
    with pytest.raises(MedadError, match="two channels have one role"):
        _read(root).data()


def test_a_job_of_two_instances_is_refused(root: Path) -> None:
    with pytest.raises(MedadError, match="2 instances"):
        _read(root, SM_HOSTS='["algo-1", "algo-2"]')
    (root / "input/config/resourceconfig.json").write_text('{"current_host": "algo-1", "hosts": ["algo-1", "algo-2"]}')
    with pytest.raises(MedadError, match="2 instances"):
        _read(root)


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"SM_HPS": "{"}, "holds no JSON"),
        ({"SM_CHANNEL_TRAIN": "/no/such/channel"}, "channel train is no folder"),
    ],
)
def test_faults_are_one_line(root: Path, environ: dict[str, str], says: str) -> None:
    with pytest.raises(MedadError, match=says):
        _read(root, **environ)
