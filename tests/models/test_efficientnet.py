from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from medad_serve.models import Batch, Family, family
from medad_serve.models.efficientnet import EfficientnetClassifier

CHOSEN: Family = family("efficientnet_b0").trial()
SIDE = 96
"""Three times three places in the last features."""


def _build(seed: int = 0, **settings: float) -> EfficientnetClassifier:
    torch.manual_seed(seed)
    model = family("efficientnet_b0").build(CHOSEN.prep, {"dropout": 0.0, **settings})
    assert isinstance(model, EfficientnetClassifier)
    for part in model.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.momentum = 1.0
    with torch.no_grad():  # running statistics of these films, and logits of both signs
        model.train()(_films(8))
        head = model.eval().network.get_submodule("classifier")
        logit = model(_films(8))["score"]
        head.get_parameter("weight").mul_(4 / logit.std())
        head.get_parameter("bias").sub_(4 * logit.mean() / logit.std())
    return model


def _films(n: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 1, SIDE, SIDE, generator=generator) + torch.randn(n, 1, 1, 1, generator=generator)


def _batch(labels: list[int]) -> Batch:
    return Batch.of(_films(len(labels)))._replace(labels=torch.tensor(labels))


def test_films_are_standardized_by_the_mean_of_imagenets_channels() -> None:
    prep = family("efficientnet_b0").prep
    assert prep.standardize is not None
    assert prep.standardize.mean == pytest.approx(np.mean([0.485, 0.456, 0.406]), abs=5e-4)
    assert prep.standardize.std == pytest.approx(np.mean([0.229, 0.224, 0.225]), abs=5e-4)
    assert (prep.size, prep.fit, prep.window) == ((224, 224), "cover", "file")


@torch.no_grad()
def test_score_is_timms_logit_and_probability_its_scaled_sigmoid() -> None:
    model, x = _build(), _films(3)
    model.calibrated.temperature.fill_(2.5)
    model.calibrated.offset.fill_(-0.75)
    found, logit = model(x), model.network(x)[:, 0]
    assert torch.allclose(found["score"], logit, atol=1e-6)
    assert torch.allclose(found["probability"], 1 / (1 + torch.exp(-(logit / 2.5 - 0.75))), atol=1e-6)


@torch.no_grad()
def test_scores_still_differ_where_a_sigmoid_is_1() -> None:
    model, x = _build(), _films(4)
    head = model.network.get_submodule("classifier")
    head.get_parameter("bias").fill_(40)
    found = model(x)
    assert (found["score"].sigmoid() == 1).all()
    assert len(found["score"].unique()) == 4


def test_the_map_is_grad_cam() -> None:
    """Selvaraju et al., eq. 1 and 2: gradients averaged over places weigh the features, then ReLU."""
    model, x = _build(), _films(2)
    features = model.network.forward_features(x).detach().requires_grad_()
    model.network.forward_head(features).sum().backward()
    assert features.grad is not None
    alpha = features.grad.mean(dim=(2, 3), keepdim=True)
    grad_cam = (alpha * features).sum(dim=1, keepdim=True).relu().detach()
    places = features.shape[2] * features.shape[3]
    expected = F.interpolate(grad_cam, size=(SIDE, SIDE), mode="bilinear", align_corners=False) * places
    with torch.no_grad():
        found = model(x)["heatmap"]
    assert found.max() > 0
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_what_the_places_give_averages_to_the_logit() -> None:
    model, x = _build(), _films(3)
    bias = model.network.get_submodule("classifier").get_parameter("bias")
    places = model.places(model.network.forward_features(x))
    assert torch.allclose(places.mean(dim=(1, 2, 3)) + bias, model(x)["score"], atol=1e-4)


def test_loss_is_smoothed_and_weighs_both_classes_alike() -> None:
    model, batch = _build(label_smoothing=0.1), _batch([0, 0, 0, 1])
    model.share.fill_(0.25)
    with torch.no_grad():
        terms, score = model.loss(batch), model(batch.x)["score"].double().numpy()
    target = np.array([0.05, 0.05, 0.05, 0.95])
    each = target * np.logaddexp(0, -score) + (1 - target) * np.logaddexp(0, score)
    assert terms["loss"].item() == pytest.approx((each[:3].mean() + each[3]) / 2, rel=1e-4)
    assert terms["accuracy"].item() == pytest.approx(((score > 0) == [False, False, False, True]).mean())


def test_the_share_of_abnormal_items_is_learned_in_training_alone() -> None:
    model, batch = _build(), _batch([0, 0, 0, 1])
    with torch.no_grad():
        model.loss(batch)
        assert model.share.item() == 0.5
        model.train()
        for _ in range(5):
            model.loss(batch)
    assert model.share.item() == pytest.approx(0.25 + 0.25 * 0.99**5, rel=1e-5)


def test_dropout_is_that_of_the_settings_and_of_training_alone() -> None:
    model, x = _build(dropout=0.3), _films(4)
    features = model.network.forward_features(x).detach()
    with torch.no_grad():
        still = [model.network.forward_head(features) for _ in range(2)]
        model.train()
        drawn = [model.network.forward_head(features) for _ in range(2)]
    assert torch.equal(*still)
    assert not torch.equal(*drawn)
    assert model.network.drop_rate == 0.3


def _held_out(model: EfficientnetClassifier) -> list[Batch]:
    """Sixty-four items whose labels agree with the sign of the logit, but for every eighth."""
    x = _films(64, 5)
    with torch.no_grad():
        logit = model(x)["score"]
    labels = (logit > logit.median()).long()
    labels[::8] = 1 - labels[::8]
    return [Batch.of(x[i : i + 16])._replace(labels=labels[i : i + 16]) for i in range(0, 64, 16)]


def test_probability_is_fitted_on_held_out_items_and_only_that_changes() -> None:
    model = _build()
    before, rows = {n: v.clone() for n, v in model.state_dict().items()}, []
    held_out = _held_out(model)
    model.fit_probability(held_out, rows.append)
    changed = {n for n, v in model.state_dict().items() if not torch.equal(v, before[n])}
    assert changed == {"calibrated.temperature", "calibrated.offset"}
    assert len(rows) == 1
    names = {"prevalence", "temperature", "offset", "ece_before", "ece_after", "nll_before", "nll_after"}
    assert set(rows[0]) == names
    assert rows[0]["nll_after"] < rows[0]["nll_before"]


@torch.no_grad()
def _mean_probability(prevalence: float | None, share: float) -> float:
    """Fit on held-out items; return the mean over them, weighted to the prevalence that was meant."""
    model = _build() if prevalence is None else _build(prevalence=prevalence)
    model.share.fill_(share)
    held_out = _held_out(model)
    model.fit_probability(held_out, lambda _: None)
    p = torch.cat([model(b.x)["probability"] for b in held_out])
    labels = torch.cat([b.labels for b in held_out])
    meant = prevalence or share
    return (p[labels == 1].mean() * meant + p[labels == 0].mean() * (1 - meant)).item()


@pytest.mark.parametrize("prevalence", [0.1, 0.5])
def test_probability_is_read_at_the_prevalence_of_the_settings(prevalence: float) -> None:
    assert _mean_probability(prevalence, share=0.8) == pytest.approx(prevalence, abs=0.03)


def test_probability_is_read_at_the_prevalence_of_training_unless_told() -> None:
    """Half of the held-out items are abnormal, whatever share of the training items was."""
    assert _mean_probability(None, share=0.74) == pytest.approx(0.74, abs=0.03)


def test_one_class_alone_fits_no_probability() -> None:
    model, rows = _build(), []
    model.fit_probability([_batch([1, 1, 1])], rows.append)
    assert model.calibrated.temperature.item() == 1
    assert not rows


@torch.no_grad()
def test_a_fresh_head_is_undecided() -> None:
    """timm's own start gives one class logits of ten and more."""
    fresh = family("efficientnet_b0").build(CHOSEN.prep)
    assert fresh.train()(_films(8))["score"].abs().max() < 1
