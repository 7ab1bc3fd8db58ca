from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from medad_serve.errors import MedadError
from medad_serve.training.config import parse_overrides, recipe_path
from medad_serve.training.dimensions import Dimension, Space
from medad_serve.training.space import read_space, space_path


def _read(folder: Path, text: str, model: str = "ae") -> Space:
    path = folder / "space.yaml"
    path.write_text(text)
    return read_space(str(path), model)


def _found(space: Space) -> dict[str, Any]:
    return {d.key: d.distribution for d in space.dimensions}


def test_our_format_lists_values_and_ranges(tmp_path: Path) -> None:
    space = _read(
        tmp_path,
        """
train.learning_rate: {low: 1e-5, high: 1e-1, log: true}
train.weight_decay: {low: 0.0, high: 0.5, step: 0.25}
settings.latent_dim: {low: 8, high: 32, step: 8}
hidden_dim: {low: 16, high: 1024, log: true}
train.optimizer: [adam, adamw]
train.gradient_clip: [null, 1e-1, 1]
prep.size: [[32, 32], [64, 64]]
""",
    )
    assert _found(space) == {
        "train.learning_rate": FloatDistribution(1e-5, 1e-1, log=True),
        "train.weight_decay": FloatDistribution(0.0, 0.5, step=0.25),
        "settings.latent_dim": IntDistribution(8, 32, step=8),
        "settings.hidden_dim": IntDistribution(16, 1024, log=True),
        "train.optimizer": CategoricalDistribution(["adam", "adamw"]),
        "train.gradient_clip": CategoricalDistribution([None, 0.1, 1]),
        "prep.size": CategoricalDistribution(["[32, 32]", "[64, 64]"]),
    }
    assert space.method is None


def test_a_wandb_file_is_read_as_it_is(tmp_path: Path) -> None:
    space = _read(
        tmp_path,
        """
program: train.py
project: anything
command: [python, $program]
method: bayes
metric: {name: val_auroc, goal: maximize}
run_cap: 12
early_terminate: {type: hyperband, min_iter: 3, eta: 4}
parameters:
  learning_rate: {distribution: log_uniform_values, min: 1e-5, max: 1e-2}
  weight_decay: {distribution: log_uniform, min: -9, max: -2}
  batch_size: {distribution: q_uniform, min: 16, max: 64, q: 16}
  latent_dim: {min: 8, max: 32}
  min_delta: {min: 0.0, max: 0.5}
  hidden_dim: {values: [32, 64]}
  train:
    parameters:
      optimizer: {distribution: categorical, values: [adam, adamw]}
  max_epochs: {value: 7}
""",
    )
    found = _found(space)
    decay = found.pop("train.weight_decay")
    assert decay.log
    assert (decay.low, decay.high) == pytest.approx((2.718281828459**-9, 2.718281828459**-2))  # W&B's are exponents
    assert found == {
        "train.learning_rate": FloatDistribution(1e-5, 1e-2, log=True),
        "train.batch_size": IntDistribution(16, 64, step=16),
        "settings.latent_dim": IntDistribution(8, 32),
        "train.min_delta": FloatDistribution(0.0, 0.5),
        "settings.hidden_dim": CategoricalDistribution([32, 64]),
        "train.optimizer": CategoricalDistribution(["adam", "adamw"]),
    }
    assert (space.method, space.metric, space.goal, space.trials) == ("bayes", "val/auroc", "max", 12)
    assert space.fixed == ("train.max_epochs=7",)
    assert space.hyperband == {"min_resource": 3, "reduction_factor": 4}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("train.learning_rat: [1, 2]", "no one setting 'train.learning_rat'. Did you mean train.learning_rate?"),
        ("size: [[32, 32]]", "no one setting 'size'. Did you mean input.size or "),
        ("method: grid\nparameters: {lr_rate: {values: [1]}}", "no one setting 'lr_rate'"),
        ("method: grid\nparameters: {learnin_rate: {values: [1]}}", "Did you mean train.learning_rate?"),
        ("method: hillclimb\nparameters: {seed: {values: [1]}}", "(method: Input should be 'grid'"),
        ("method: grid\nparameters: {seed: {distribution: beta, min: 0, max: 1}}", "distribution beta is not known"),
        ("method: grid\nparameters: {seed: {min: 0}}", "seed cannot be searched (min and max are needed)"),
        ("method: grid\nparameters: {seed: {vales: [1]}}", "seed cannot be used (vales: Extra inputs"),
        ("method: grid\nmetric: {name: score}\nparameters: {seed: {values: [1]}}", "metric 'score' is none of ours"),
        ("method: grid\nparameters: {seed: {value: 3}}", "names nothing to search"),
        ("seed: 3", "seed is neither values nor a range"),
        ("seed: [1, 2, 1]", "a value is there twice"),
        ("seed: []", "seed cannot be searched"),
        ("seed: {low: 4, high: 1}", "seed cannot be searched"),
        ("train.learning_rate: {low: 0.0, high: 1.0, log: true}", "train.learning_rate cannot be searched"),
        ("seed: [1]\nprogram: x", "no one setting 'program'"),
        ("latent_dim: [1]\nsettings.latent_dim: [1]", "names settings.latent_dim twice"),
        ("split.seed: [0, 1, 2]", "split.seed cannot be searched, trials would not compare"),
        ("- 1", "holds no mapping"),
    ],
)
def test_a_fault_is_one_line(tmp_path: Path, text: str, fault: str) -> None:
    with pytest.raises(MedadError) as error:
        _read(tmp_path, text)
    said = str(error.value)
    assert fault in said
    assert str(tmp_path / "space.yaml") in said
    assert "\n" not in said


@pytest.mark.parametrize("value", [0.1, 1e-07, 3, True, None, "adam", "1e-3", "yes", "a=b", "[32, 64]"])
def test_a_value_comes_through_the_override_unchanged(value: object) -> None:
    text = Dimension("train.optimizer", CategoricalDistribution([0])).override(value)
    found = parse_overrides([text], "ae")["train"]["optimizer"]
    assert found == ([32, 64] if value == "[32, 64]" else str(value) if value == 1e-07 else value)


def test_points_of_a_grid() -> None:
    assert Dimension("a", IntDistribution(8, 32, step=8)).points() == (8, 16, 24, 32)
    assert Dimension("a", FloatDistribution(0, 0.3, step=0.1)).points() == pytest.approx((0, 0.1, 0.2, 0.3))
    assert Dimension("a", CategoricalDistribution(["x", None])).points() == ("x", None)
    with pytest.raises(MedadError, match="a has no end of values for a grid"):
        Dimension("a", FloatDistribution(0, 1)).points()


def test_the_grid_of_the_source_ships_and_is_no_recipe() -> None:
    space = read_space("oct_vqvae_sweep", "vqvae")
    assert {key: set(found.choices) for key, found in _found(space).items()} == {
        "train.learning_rate": {1e-3, 1e-4, 1e-5},
        "settings.beta": {0.1, 0.25, 0.5},
        "settings.embedding_dim": {64, 128},
        "settings.n_embeddings": {32, 64},
        "settings.n_hiddens": {128, 256},
        "settings.dropout": {0.1, 0.2},
    }
    assert (space.method, space.metric, space.size()) == ("grid", "val/loss", 144)
    with pytest.raises(MedadError, match="no configuration 'oct_vqvae_sweep'") as error:
        recipe_path("oct_vqvae_sweep")
    assert "_sweep" not in error.value.hint
    with pytest.raises(MedadError, match=r"no space 'cq500_ae'.*oct_vqvae_sweep"):
        space_path("cq500_ae")
