from __future__ import annotations

from pathlib import Path

import pytest

from medad_serve.errors import MedadError
from medad_serve.training.config import model_named, resolve

DATA = "cq500:somewhere"


def test_defaults_are_the_sources() -> None:
    config = resolve("ae", DATA, None, [])
    assert (config.train.max_epochs, config.train.batch_size, config.train.learning_rate) == (250, 64, 1e-3)
    assert config.train.optimizer == "adam"
    assert config.settings == {"width": 16, "latent_dim": 16, "hidden_dim": 2048}
    assert (config.prep.window.center, config.prep.window.width, config.prep.size) == (40, 80, (64, 64))


def test_overrides_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"data: {DATA}\ntrain: {{max_epochs: 7, batch_size: 8}}\nsettings: {{width: 8}}\n")
    config = resolve("ae", None, str(file), ["train.batch_size=4", "train.learning_rate=1e-4", "prep.size=[32, 32]"])
    assert (config.train.max_epochs, config.train.batch_size, config.train.learning_rate) == (7, 4, 1e-4)
    assert config.settings["width"] == 8
    assert config.prep.size == (32, 32)
    assert config.prep.window.center == 40


def test_recipe_by_name() -> None:
    assert resolve("ae", DATA, "cq500_ae", []).train.max_epochs == 250


def test_the_configuration_names_the_model() -> None:
    assert model_named(None, "cq500_aeu", ()) == ("aeu", ())
    assert model_named("seed=1", "cq500_aeu", ("device=cpu",)) == ("aeu", ("seed=1", "device=cpu"))
    assert model_named("vae", None, ("seed=1",)) == ("vae", ("seed=1",))
    with pytest.raises(MedadError, match="no model was named"):
        model_named("seed=1", None, ())
    with pytest.raises(MedadError, match="there is no configuration 'nothing'"):
        model_named(None, "nothing", ())


def test_precision_32_is_full_precision() -> None:
    assert resolve("ae", DATA, None, ["train.precision=32"]).train.precision == "32-true"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["max_epochs=3"], r"Did you mean train\.max_epochs\?"),
        (["train.max_epoch=3"], r"train\.max_epochs"),
        (["prep.size=64"], r"prep\.size: must be a list in brackets"),
        (["prep.normalize=[1, 99]"], r"prep\.normalize: must be fields, e\.g\. \{low: 1"),
        (["train.max_epochs=many"], r"train\.max_epochs: Input should be a valid integer"),
        (["train.max_epochs=0"], r"train\.max_epochs"),
        (["train.max_epochs"], "no key=value"),
        (["settings.width=x"], "width"),
        (["prep.size=[1]"], "positive numbers"),
        (["prep.window.width=0"], "window width must be"),
        (["calibration.policy=good"], "no cutoff policy"),
        (["calibration.aggregation=sum"], "no aggregation"),
        (["experiment=../out"], "plain folder name"),
        (["train.precision=8"], "precision"),
        (["split.folds=1"], r"split\.folds"),
        (["split.seed=-1"], r"split\.seed"),
        (["seed=-1"], "seed"),
        (["split.train=0.9", "split.validation=0.9"], "leave a share for test"),
        (["device=tpu"], "device"),
        (["train.monitor=loss"], r"train\.monitor"),
        (["prep.size=[60,60]"], "does not divide by 16"),
    ],
)
def test_faults_name_the_field(overrides: list[str], says: str) -> None:
    with pytest.raises(MedadError, match=says):
        resolve("ae", DATA, None, overrides)


def test_the_data_folder_is_kept_from_the_root() -> None:
    assert resolve("ae", DATA, None, []).data == f"cq500:{Path.cwd() / 'somewhere'}"


def test_missing_data_and_configuration_are_named(tmp_path: Path) -> None:
    with pytest.raises(MedadError, match="no data was named"):
        resolve("ae", None, None, [])
    with pytest.raises(MedadError, match="cq500_ae"):
        resolve("ae", DATA, "nothing", [])
    (tmp_path / "other.yaml").write_text("model: draem\n")
    with pytest.raises(MedadError, match="is for model draem"):
        resolve("ae", DATA, str(tmp_path / "other.yaml"), [])
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(MedadError, match="cannot read"):
        resolve("ae", DATA, str(tmp_path / "broken.yaml"), [])


def test_a_model_brings_training_settings_of_its_own() -> None:
    train = resolve("vqvae3d", "volumes:.", None, []).train
    assert (train.optimizer, train.learning_rate, train.batch_size) == ("adamw", 1e-4, 4)
    assert (train.max_epochs, train.patience) == (200, 20)
    train = resolve("vqvae", "folders:.", None, ["train.patience=3"]).train
    assert (train.learning_rate, train.patience, train.min_delta) == (1e-4, 3, 1e-4)


def test_faults_must_be_on_the_scale_of_the_prepared_images() -> None:
    scaled, faults = "prep.output_range=[-1, 1]", "settings.faults.values=[-1, 1]"
    with pytest.raises(MedadError, match=r"faults have values 0 to 1, .*Set settings.faults.values=\[-1,1\]"):
        resolve("draem", DATA, None, [scaled])
    assert resolve("draem", DATA, None, [scaled, faults]).prep.values == (-1, 1)
    standardized = "prep.standardize={mean: 0.449, std: 0.226}"
    with pytest.raises(MedadError, match=r"values=\[-1.9867,2.4381\]"):
        resolve("draem", DATA, None, [standardized])
    resolve("draem", DATA, None, [standardized, "settings.faults.values=[-1.9867,2.4381]"])
