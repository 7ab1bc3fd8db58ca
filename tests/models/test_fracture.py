from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from medad_serve.models import Batch, Family, family
from medad_serve.models.fracture import FractureClassifier
from medad_serve.models.vqvae3d import Vqvae3d

CHOSEN: Family = family("fracture").trial()


def _build(seed: int = 0) -> FractureClassifier:
    torch.manual_seed(seed)
    model = CHOSEN.build(CHOSEN.prep)
    assert isinstance(model, FractureClassifier)
    return model


def _volumes(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, *CHOSEN.shape(CHOSEN.prep), generator=torch.Generator().manual_seed(seed))


def _batch(labels: list[int]) -> Batch:
    return Batch.of(_volumes(len(labels)))._replace(labels=torch.tensor(labels))


def _state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_training_leaves_the_reconstructor_as_it_was() -> None:
    model = _build().train()
    before = _state(model.reconstructor)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model.loss(_batch([0, 1, 0, 1]))["loss"].backward()
        optimizer.step()
    after = _state(model.reconstructor)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(p.requires_grad for p in model.reconstructor.parameters())


def test_the_reconstructor_stays_in_evaluation_mode() -> None:
    model = _build().train()
    assert model.network.training
    assert not any(module.training for module in model.reconstructor.modules())


def test_it_starts_from_a_trained_vqvae3d_of_the_adopted_settings() -> None:
    other = family("vqvae3d").trial()
    torch.manual_seed(9)
    trained = other.build(other.prep)
    assert isinstance(trained, Vqvae3d)
    trained.train()(_volumes(4))
    settings = family("fracture").adopt(trained.settings.model_dump())
    model = family("fracture").build(CHOSEN.prep, {**settings, "layers": (1, 1)})
    model.start_from(trained.state_dict())
    taken = _state(model.reconstructor)  # type: ignore[arg-type]
    assert all(torch.equal(value, taken[name]) for name, value in trained.state_dict().items())


def test_it_starts_from_a_fracture_model_too() -> None:
    first, second = _build(0), _build(1)
    second.start_from(first.state_dict())
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


@torch.no_grad()
def test_score_is_what_monais_network_makes_of_volume_and_error() -> None:
    model, x = _build().eval(), _volumes(3)
    model.reconstructor.map_scale.mean.copy_(torch.tensor([0.1, 7.0]))
    model.reconstructor.map_scale.std.copy_(torch.tensor([0.3, 9.0]))
    found = model(x)
    error, *_ = model.reconstructor.maps(x)
    logit = model.network(torch.cat((x, (error - 0.1) / 0.3), dim=1))[:, 0]
    assert torch.allclose(found["probability"], logit.sigmoid(), atol=1e-6)
    assert torch.equal(found["score"], found["probability"])


@torch.no_grad()
def test_heatmap_is_the_error_where_the_network_looks() -> None:
    model, x = _build().eval(), _volumes(2)
    error = model.reconstructor.maps(x)[0].relu()
    head = model.network.get_submodule("class_layers.out")
    assert isinstance(head, torch.nn.Linear)
    head.weight.zero_()
    for bias, weight in ((50.0, 1.0), (-50.0, 0.0), (0.0, 0.5)):
        head.bias.fill_(bias)
        assert torch.allclose(model(x)["heatmap"], error * weight, atol=1e-6)


def test_loss_weighs_both_classes_alike() -> None:
    model, batch = _build().eval(), _batch([0, 0, 0, 1])
    model.share.fill_(0.25)
    with torch.no_grad():
        terms, p = model.loss(batch), model(batch.x)["probability"].double().numpy()
    healthy, fractured = -np.log(1 - p[:3]).mean(), -np.log(p[3])
    assert terms["loss"].item() == pytest.approx((healthy + fractured) / 2, rel=1e-4)


def test_the_share_of_fractures_is_learned_in_training_alone() -> None:
    model, batch = _build(), _batch([0, 0, 0, 1])
    with torch.no_grad():
        model.eval().loss(batch)
        assert model.share.item() == 0.5
        model.train()
        for _ in range(5):
            model.loss(batch)
    assert model.share.item() == pytest.approx(0.25 + 0.25 * 0.99**5, rel=1e-5)


def test_a_few_steps_tell_bright_from_dark() -> None:
    model = _build().train()
    labels = torch.tensor([0, 1] * 4)
    x = _volumes(8) * 0.5 + 0.4 * labels.view(-1, 1, 1, 1, 1)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), 1e-2)
    for _ in range(25):
        optimizer.zero_grad()
        model.loss(Batch.of(x)._replace(labels=labels))["loss"].backward()
        optimizer.step()
    with torch.no_grad():
        found = model.eval()(x)["probability"]
    assert F.binary_cross_entropy(found, labels.float()) < 0.3
