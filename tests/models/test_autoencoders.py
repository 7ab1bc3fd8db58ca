from __future__ import annotations

from typing import cast

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from medad_serve.errors import MedadError
from medad_serve.models import Batch, count_parameters, family
from medad_serve.models.autoencoders import Autoencoder, UncertaintyAutoencoder, VariationalAutoencoder
from medad_serve.spec import PrepSpec

SMALL = {"width": 4, "hidden_dim": 32, "latent_dim": 6}


def _images(n: int = 5) -> torch.Tensor:
    return torch.rand(n, 1, 64, 64, generator=torch.Generator().manual_seed(3))


def _aeu() -> UncertaintyAutoencoder:
    torch.manual_seed(0)
    return cast(UncertaintyAutoencoder, family("aeu").build(settings=SMALL).eval())


def _vae() -> VariationalAutoencoder:
    torch.manual_seed(0)
    return cast(VariationalAutoencoder, family("vae").build(settings=SMALL).eval())


@pytest.mark.parametrize(
    ("name", "count"),
    # The VAE adds to the source's autoencoder one more latent vector: 16 weights of 2048 and a bias each.
    [("ae", 4_487_248), ("aeu", 4_487_504), ("vae", 4_487_248 + 16 * (2048 + 1))],
)
def test_parameter_count_is_the_sources(name: str, count: int) -> None:
    assert count_parameters(family(name).build()) == count


@pytest.mark.parametrize("name", ["ae", "vae"])
def test_score_is_the_mean_squared_error_and_heatmap_the_squared_error(name: str) -> None:
    model, x = family(name).build(settings=SMALL).eval(), _images()
    with torch.no_grad():
        found = model(x)
    squared = (x - found["reconstruction"]) ** 2
    assert torch.allclose(found["heatmap"], squared)
    assert torch.allclose(found["score"], squared.mean(dim=(1, 2, 3)))


def test_aeu_loss_is_twice_the_gaussian_negative_log_likelihood_without_its_constant() -> None:
    model, x = _aeu(), _images()
    with torch.no_grad():
        mean, log_variance = model.reconstruct(x)
        found = model.loss(Batch.of(x))
    likelihood = Normal(mean, torch.exp(log_variance / 2)).log_prob(x)
    constant = Normal(0.0, 1.0).log_prob(torch.tensor(0.0))
    assert torch.allclose(found["loss"], (-2 * (likelihood - constant)).mean(), rtol=1e-5)
    assert torch.allclose(found["recon_loss"], torch.nn.functional.mse_loss(mean, x))


def test_aeu_score_is_the_squared_number_of_standard_deviations() -> None:
    model, x = _aeu(), _images()
    with torch.no_grad():
        found = model(x)
        mean, log_variance = model.reconstruct(x)
    deviations = (x - mean) / log_variance.exp().sqrt()
    assert torch.allclose(found["heatmap"], deviations**2, rtol=1e-5)
    assert torch.allclose(found["score"], (deviations**2).mean(dim=(1, 2, 3)), rtol=1e-5)
    assert torch.equal(found["log_variance"], log_variance)


def test_aeu_learns_where_errors_are_larger() -> None:
    torch.manual_seed(0)
    model = cast(UncertaintyAutoencoder, family("aeu").build(PrepSpec(size=(32, 32)), SMALL).train())
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(150):
        x = torch.full((16, 1, 32, 32), 0.5)
        x[..., :16] += 0.3 * torch.randn(16, 1, 32, 16)
        optimizer.zero_grad()
        model.loss(Batch.of(x))["loss"].backward()
        optimizer.step()
    with torch.no_grad():
        _, log_variance = model.reconstruct(x)
    assert log_variance[..., :12].mean() > log_variance[..., 20:].mean() + 0.5


def test_vae_divergence_is_that_of_two_normals() -> None:
    model, x = _vae(), _images()
    with torch.no_grad():
        mean, log_variance = model.posterior(x)
        found = model.loss(Batch.of(x))
    expected = kl_divergence(Normal(mean, torch.exp(log_variance / 2)), Normal(0.0, 1.0)).mean()
    assert torch.allclose(found["kl_loss"], expected, rtol=1e-5)
    assert torch.allclose(found["loss"], found["recon_loss"] + 2e-4 * found["kl_loss"])


def test_vae_weighs_the_divergence_as_set() -> None:
    model = family("vae").build(settings={**SMALL, "kl_weight": 2.0}).eval()
    found = model.loss(Batch.of(_images()))
    assert torch.allclose(found["loss"], found["recon_loss"] + 2 * found["kl_loss"])


def test_vae_draws_in_training_with_the_predicted_deviation() -> None:
    model, x = _vae(), _images(4)
    drawn: list[torch.Tensor] = []
    model.from_latent.register_forward_pre_hook(lambda _, given: drawn.append(given[0].detach()))
    with torch.no_grad():
        mean, log_variance = model.posterior(x)
        model.training = True  # not its batch norms, so that the posterior stays the same
        for _ in range(400):
            model.loss(Batch.of(x))
    latents = torch.stack(drawn)
    assert torch.allclose(latents.mean(0), mean, atol=0.25)
    assert torch.allclose(latents.std(0), torch.exp(log_variance / 2), rtol=0.25)


@pytest.mark.parametrize("name", ["ae", "aeu", "vae"])
def test_evaluation_is_deterministic(name: str) -> None:
    model, x = family(name).build(settings=SMALL).eval(), _images()
    with torch.no_grad():
        first, second = model(x), model(x)
        losses = [model.loss(Batch.of(x))["loss"] for _ in range(2)]
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert torch.equal(*losses)


def test_latent_and_width_are_configurable() -> None:
    model = cast(Autoencoder, family("ae").build(settings={"latent_dim": 5, "width": 4, "hidden_dim": 32}))
    assert model.encode(torch.rand(2, 1, 64, 64)).shape == (2, 5)


def test_other_sizes_build_and_odd_ones_are_refused() -> None:
    model = family("ae").build(PrepSpec(size=(32, 96)), {"hidden_dim": 8}).eval()
    assert model(torch.rand(2, 1, 32, 96))["heatmap"].shape == (2, 1, 32, 96)
    with pytest.raises(MedadError, match="does not divide by 16"):
        family("ae").build(PrepSpec(size=(60, 64)))


def test_unknown_model_lists_the_known_ones() -> None:
    with pytest.raises(MedadError, match=r"Choose one of: .*ae"):
        family("nothing")
