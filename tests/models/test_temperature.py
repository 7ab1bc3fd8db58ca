from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from torchmetrics.functional.classification import binary_calibration_error

from medad_serve.models.temperature import (
    SHARPEST,
    Temperature,
    calibration_error,
    negative_log_likelihood,
    smoothed_targets,
)


def _drawn(n: int, seed: int = 0, slope: float = 0.5, offset: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits ``(n,)`` whose labels were drawn with ``sigmoid(slope * logit + offset)``."""
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 4, n)
    labels = rng.random(n) < expit(slope * values + offset)
    return torch.from_numpy(values), torch.from_numpy(labels.astype(np.int64))


def test_fresh_it_is_the_sigmoid() -> None:
    values = torch.linspace(-30, 30, 50)
    assert torch.equal(Temperature()(values), values.sigmoid())


def test_it_finds_what_the_labels_were_drawn_with() -> None:
    scaling = Temperature()
    scaling.fit(*_drawn(20_000))
    assert scaling.temperature.item() == pytest.approx(2, rel=0.05)
    assert scaling.offset.item() == pytest.approx(1, abs=0.06)


def test_it_is_logistic_regression_on_platts_targets() -> None:
    values, labels = _drawn(300, 3)
    scaling = Temperature()
    scaling.fit(values, labels)
    target = smoothed_targets(labels).numpy()
    # A soft target is an item of each class, by its weight.
    regression = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(
        np.tile(values.numpy()[:, None], (2, 1)),
        np.repeat([1, 0], len(values)),
        sample_weight=np.concatenate([target, 1 - target]),
    )
    assert 1 / scaling.temperature.item() == pytest.approx(regression.coef_[0, 0], rel=1e-4)
    assert scaling.offset.item() == pytest.approx(regression.intercept_[0], rel=1e-4)


def test_platts_targets_keep_short_of_0_and_1() -> None:
    assert smoothed_targets(torch.tensor([0, 0, 0, 1])).tolist() == pytest.approx([0.2, 0.2, 0.2, 2 / 3])


@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
def test_classes_told_apart_without_fault_give_finite_figures(scale: float) -> None:
    values = torch.cat([torch.linspace(-3, -1, 40), torch.linspace(1, 3, 40)]) * scale
    labels = (values > 0).long()
    scaling = Temperature()
    found = scaling.fit(values, labels)
    assert all(np.isfinite(v) for v in found.values())
    assert found["temperature"] >= SHARPEST * 0.999
    assert (scaling(values).diff() >= 0).all()


def test_a_logit_that_says_nothing_is_not_turned_around() -> None:
    values, labels = _drawn(500, slope=-0.5, offset=0.0)
    scaling = Temperature()
    scaling.fit(values, labels)
    assert scaling.temperature.item() > 0


def test_a_loss_of_balanced_classes_is_made_honest_on_items_never_seen() -> None:
    """A logit for as many abnormal as healthy, twice too confident, where a quarter is abnormal."""
    truth, labels = _drawn(8000, 7, slope=1.0, offset=logit(0.25))
    values = 2 * truth
    scaling = Temperature()
    found = scaling.fit(values[:4000], labels[:4000])
    unseen = calibration_error(scaling(values[4000:]), labels[4000:])
    assert found["ece_before"] > 0.07
    assert calibration_error(values[4000:].sigmoid(), labels[4000:]) > 0.07
    assert found["ece_after"] < 0.02
    assert unseen < 0.03
    assert found["nll_after"] < 0.8 * found["nll_before"]


def test_a_second_fit_starts_anew() -> None:
    scaling = Temperature()
    first = scaling.fit(*_drawn(500))
    assert scaling.fit(*_drawn(500)) == first


def test_another_prevalence_moves_the_offset_by_its_odds() -> None:
    values, labels = _drawn(4000, 5)
    own, other = Temperature(), Temperature()
    own.fit(values, labels)
    other.fit(values, labels, prevalence=0.2)
    share = labels.double().mean().item()
    assert other.temperature.item() == pytest.approx(own.temperature.item(), rel=0.1)
    assert (other.offset - own.offset).item() == pytest.approx(logit(0.2) - logit(share), abs=0.1)


def test_calibration_error_is_the_weighted_gap_of_fifteen_bins() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(2000)
    labels = (rng.random(2000) < p**2).astype(np.int64)
    bins = np.minimum((p * 15).astype(int), 14)
    expected = sum(
        (bins == b).mean() * abs(labels[bins == b].mean() - p[bins == b].mean()) for b in range(15) if (bins == b).any()
    )
    found = calibration_error(torch.from_numpy(p), torch.from_numpy(labels))
    assert found == pytest.approx(expected, abs=1e-9)
    theirs = binary_calibration_error(torch.from_numpy(p), torch.from_numpy(labels), n_bins=15, norm="l1")
    assert found == pytest.approx(theirs.item(), abs=1e-6)


def test_an_item_of_weight_two_counts_as_two() -> None:
    values, labels = _drawn(300, 4)
    p, weight = values.sigmoid(), 1 + labels.double()
    twice = torch.cat([torch.arange(300), torch.nonzero(labels)[:, 0]])
    assert calibration_error(p, labels, weight) == pytest.approx(calibration_error(p[twice], labels[twice]), rel=1e-9)


def test_likelihood_is_sklearns_log_loss() -> None:
    values, labels = _drawn(400, 2)
    found = negative_log_likelihood(values, labels)
    assert found == pytest.approx(log_loss(labels.numpy(), expit(values.numpy())), rel=1e-6)
