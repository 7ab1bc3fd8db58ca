from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch

from medad_serve.bench.training import COLUMNS, Bench, bench_training
from medad_serve.models import families, family
from medad_serve.training.augment import AugmentSettings
from medad_serve.training.config import TrainSettings


def test_a_model_has_a_row_with_every_ratio() -> None:
    threads = torch.get_num_threads()
    [row] = bench_training([family("dae").trial()], seconds=0.01).rows
    found = dict(zip(COLUMNS, row, strict=True))
    assert (found["model"], found["size"], found["batch"]) == ("dae", "64x64", 8)
    assert found["augmented"] is True  # by the recipe
    assert all(float(value or 0) > 0 for name, value in found.items() if name not in ("model", "size"))
    assert torch.get_num_threads() == threads


def test_volumes_are_no_pictures_whose_channels_could_come_last() -> None:
    small = family("vqvae3d").trial()
    [row] = bench_training([small], seconds=0.01, volume=small.prep.size).rows
    found = dict(zip(COLUMNS, row, strict=True))
    assert found["size"] == "16x16x16"
    assert found["channels last, x faster"] is None
    assert found["bf16, x faster"]


@pytest.mark.parametrize("name", families())
def test_the_cache_is_seen_as_the_trainer_sees_it(name: str, tmp_path: Path) -> None:
    """Each epoch holds every row once; labels are those of a model that learns from them."""
    settings = TrainSettings(batch_size=2, augment=AugmentSettings(flip=0.5))
    bench = Bench(family(name).trial(), settings, tmp_path, torch.device("cpu"))
    batches = list(islice(bench.cached(), 4))
    rows = torch.cat([batch.rows for batch in batches])
    assert sorted(rows.tolist()) == list(range(8))
    assert (torch.cat([batch.labels for batch in batches]).max() == 1) == bench.task.model.supervised
