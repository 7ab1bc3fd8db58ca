from __future__ import annotations

import pytest
import torch

from medad_serve.errors import MedadError
from medad_serve.models import count_parameters, family
from medad_serve.spec import PrepSpec


def test_parameter_count_is_the_sources() -> None:
    assert count_parameters(family("ae").build()) == 4_487_248


def test_score_is_the_mean_squared_error_and_heatmap_the_squared_error() -> None:
    model = family("ae").build().eval()
    x = torch.rand(3, 1, 64, 64)
    with torch.no_grad():
        found = model(x)
    squared = (x - found["reconstruction"]) ** 2
    assert torch.allclose(found["heatmap"], squared)
    assert torch.allclose(found["score"], squared.mean(dim=(1, 2, 3)))


def test_latent_and_width_are_configurable() -> None:
    model = family("ae").build(settings={"latent_dim": 5, "width": 4, "hidden_dim": 32})
    assert model.encode(torch.rand(2, 1, 64, 64)).shape == (2, 5)


def test_other_sizes_build_and_odd_ones_are_refused() -> None:
    model = family("ae").build(PrepSpec(size=(32, 96)), {"hidden_dim": 8}).eval()
    assert model(torch.rand(2, 1, 32, 96))["heatmap"].shape == (2, 1, 32, 96)
    with pytest.raises(MedadError, match="does not divide by 16"):
        family("ae").build(PrepSpec(size=(60, 64)))


def test_unknown_model_lists_the_known_ones() -> None:
    with pytest.raises(MedadError, match="Choose one of: .*ae"):
        family("nothing")
