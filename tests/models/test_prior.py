from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from medad_serve.models.prior import CodePrior, fit_prior, mean_nll

CODES = 7


def _prior(layers: int = 3, dropout: float = 0.0, shape: tuple[int, int] = (5, 6)) -> CodePrior:
    torch.manual_seed(0)
    prior = CodePrior(CODES, shape, width=12, layers=layers, dropout=dropout).eval()
    for parameter in prior.parameters():  # biases and places too: what is zero at first could hide a leak
        parameter.data += 0.1 * torch.randn_like(parameter)
    return prior


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_a_code_never_reaches_its_own_place_nor_an_earlier_one(layers: int) -> None:
    prior = _prior(layers)
    codes = torch.randint(0, CODES, (1, 5, 6))
    with torch.no_grad():
        before = prior(codes).flatten(2)
        for place in range(30):
            other = codes.clone()
            other.view(-1)[place] = (codes.view(-1)[place] + 1) % CODES
            changed = (prior(other).flatten(2) != before).any(dim=1)[0]
            assert not changed[: place + 1].any(), place
            if place % 6 < 5:
                assert changed[place + 1], place


def test_enough_layers_see_everything_before_them() -> None:
    prior = _prior(6)
    codes = torch.randint(0, CODES, (1, 5, 6))
    with torch.no_grad():
        before = prior(codes)[0, :, -1, -1]
        for place in range(29):
            other = codes.clone()
            other.view(-1)[place] = (codes.view(-1)[place] + 1) % CODES
            assert (prior(other)[0, :, -1, -1] != before).any(), place


def test_nll_is_the_cross_entropy_of_its_logits() -> None:
    prior, codes = _prior(), torch.randint(0, CODES, (4, 5, 6))
    with torch.no_grad():
        expected = F.cross_entropy(prior(codes), codes, reduction="none")
        assert torch.allclose(prior.nll(codes), expected, atol=1e-6)
        assert mean_nll(prior, codes.to(torch.int16), torch.device("cpu")) == pytest.approx(expected.mean().item())


def test_likelihoods_of_all_maps_sum_to_one() -> None:
    torch.manual_seed(0)
    prior = CodePrior(2, (2, 3), width=4, layers=3, dropout=0.0).eval()
    maps = torch.from_numpy(np.array(np.meshgrid(*[[0, 1]] * 6, indexing="ij")).reshape(6, -1).T.copy())
    with torch.no_grad():
        likelihoods = torch.exp(-prior.nll(maps.view(-1, 2, 3)).sum(dim=(1, 2)))
    assert likelihoods.sum().item() == pytest.approx(1, rel=1e-5)


def _stripes(n: int, seed: int) -> torch.Tensor:
    """Diagonal stripes at a random phase, one code in ten replaced: ``(n, 8, 8)``."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:8, :8]
    maps = (rows + columns + rng.integers(0, CODES, (n, 1, 1))) % CODES
    return torch.from_numpy(np.where(rng.random(maps.shape) < 0.1, rng.integers(0, CODES, maps.shape), maps))


def _fitted(log: list[dict[str, float]], **settings: float) -> CodePrior:
    prior = _prior(dropout=0.1, shape=(8, 8))
    options = {"epochs": 8, "learning_rate": 1e-2, "patience": 8} | settings
    fit_prior(prior, _stripes(64, 0), _stripes(32, 1), log=log.append, **options)
    return prior


def test_it_learns_structure_that_code_frequencies_do_not_hold() -> None:
    rows: list[dict[str, float]] = []
    prior, unseen = _fitted(rows), _stripes(32, 2)
    share = np.bincount(unseen.flatten(), minlength=CODES) / unseen.numel()
    unigram = -(share * np.log(share)).sum()
    assert mean_nll(prior, unseen, torch.device("cpu")) < 0.8 * unigram
    with torch.no_grad():
        broken = unseen.flip(2)  # the same codes, stripes the other way
        assert (prior.nll(broken).mean(dim=(1, 2)) > prior.nll(unseen).mean(dim=(1, 2))).all()


def test_the_weights_of_the_best_epoch_stay_frozen() -> None:
    rows: list[dict[str, float]] = []
    prior = _fitted(rows, learning_rate=0.1, epochs=30, patience=2)
    held_out = [row["prior_held_out_nll"] for row in rows]
    assert len(rows) < 30
    assert held_out.index(min(held_out)) == len(rows) - 3
    assert mean_nll(prior, _stripes(32, 1), torch.device("cpu")) == pytest.approx(min(held_out))
    assert not prior.training
    assert not any(p.requires_grad for p in prior.parameters())


def test_fitting_is_the_same_every_time_and_leaves_the_random_state_alone() -> None:
    state = torch.random.get_rng_state()
    first = _fitted([], epochs=2)
    torch.random.set_rng_state(state)
    with torch.random.fork_rng():
        second = _fitted([], epochs=2)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
