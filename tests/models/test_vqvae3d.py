from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn import functional as F

from medad_serve.errors import MedadError
from medad_serve.models import Batch, family
from medad_serve.models.vqvae3d import Vqvae3d
from medad_serve.models.zscore import Moments, ZScore
from medad_serve.spec import PrepSpec

SIZE = (32, 32, 32)
CHOSEN = family("vqvae3d")
SMALL = {"hidden": (4, 4, 8), "latent_dim": 8, "num_embeddings": 16, "residual_layers": 1}


def _build(**settings: object) -> Vqvae3d:
    torch.manual_seed(0)
    model = CHOSEN.build(PrepSpec(size=SIZE), {**SMALL, **settings})
    assert isinstance(model, Vqvae3d)
    return model


def _settled(**settings: object) -> Vqvae3d:
    model = _build(**settings).train()
    with torch.no_grad():
        model(_volumes(2))
    return model.eval()


def _volumes(n: int, seed: int = 0) -> torch.Tensor:
    noise = np.random.default_rng(seed).random((n, 1, *SIZE))
    smooth = ndimage.gaussian_filter(noise, (0, 0, 2, 2, 2))
    return torch.from_numpy((smooth - smooth.min()) / np.ptp(smooth)).float()


def test_the_sources_settings_are_the_default() -> None:
    settings = CHOSEN.settings()
    expected = {"latent_dim": 256, "num_embeddings": 512, "commitment_cost": 0.25, "dropout": 0.1}
    assert {name: getattr(settings, name) for name in expected} == expected


@torch.no_grad()
def test_score_is_the_mean_of_the_highest_smoothed_errors() -> None:
    model, x = _settled(scores=("reconstruction",), score_share=0.05, smoothing=3), _volumes(2)
    found = model(x)
    error = ((x - found["reconstruction"]) ** 2).double().numpy()[:, 0]
    weights = ndimage.uniform_filter(np.ones(SIZE), 3, mode="constant")
    smooth = np.stack([ndimage.uniform_filter(e, 3, mode="constant") / weights for e in error])
    assert found["heatmap"].numpy()[:, 0] == pytest.approx(smooth, abs=1e-6)
    seen = np.sort(smooth[:, ::2, ::2, ::2].reshape(2, -1))
    assert found["score"].numpy() == pytest.approx(seen[:, -round(0.05 * 16**3) :].mean(axis=1), rel=1e-4)


@torch.no_grad()
def test_alignment_is_the_distance_of_each_position_to_its_code() -> None:
    model, x = _settled(scores=("alignment",), score_share=1), _volumes(2)
    found = model(x)
    z = model.encoder(x)
    codes = model.quantizer.codebook[found["codes"]].movedim(-1, 1)
    coarse = (z - codes).square().mean(dim=1)
    assert found["codes"].shape == (2, 4, 4, 4)
    assert found["alignment"].shape == (2, 1, *SIZE)
    assert torch.allclose(found["alignment"][:, 0, ::8, ::8, ::8], coarse, atol=1e-6)
    assert torch.allclose(found["score"], coarse.mean(dim=(1, 2, 3)), rtol=1e-4)
    assert torch.allclose(model.decode(found["codes"]), found["reconstruction"], atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("hidden", [(8,), (4, 4, 8), (4, 4, 4, 4, 8)])
@pytest.mark.parametrize("share", [1e-6, 0.001, 0.05, 0.33, 1])
def test_the_alignment_score_is_that_of_every_second_voxel_of_its_map(share: float, hidden: tuple[int, ...]) -> None:
    found = _settled(score_share=share, hidden=hidden)(_volumes(3))
    seen = np.sort(found["alignment"][:, 0, ::2, ::2, ::2].double().numpy().reshape(3, -1))
    expected = seen[:, -max(1, round(share * 16**3)) :].mean(axis=1)
    assert found["score_alignment"].numpy() == pytest.approx(expected, rel=1e-5)


def test_loss_is_error_and_commitment_with_the_state_of_the_codebook() -> None:
    model, x = _settled(), _volumes(2)
    with torch.no_grad():
        terms, found = model.loss(Batch.of(x)), model(x)
    mse = ((x - found["reconstruction"]) ** 2).mean()
    commitment = 0.25 * found["alignment"].mean()
    shares = np.bincount(found["codes"].flatten().numpy(), minlength=16) / found["codes"].numel()
    entropy = -sum(p * math.log(p) for p in shares if p)
    assert terms["recon_loss"].item() == pytest.approx(mse.item(), rel=1e-5)
    assert terms["vq_loss"].item() == pytest.approx(commitment.item(), rel=1e-4)
    assert terms["loss"].item() == pytest.approx(mse.item() + commitment.item(), rel=1e-4)
    assert terms["perplexity"].item() == pytest.approx(math.exp(entropy), rel=1e-4)
    assert terms["codebook_usage"].item() == pytest.approx((shares > 0).mean())


def _gradients(checkpointing: bool) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    model = _build(checkpointing=checkpointing, dropout=0.3).train()
    torch.manual_seed(1)
    model.loss(Batch.of(_volumes(2)))["loss"].backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return found, {name: value.clone() for name, value in model.named_buffers()}


def test_checkpointing_changes_neither_gradients_nor_codebook() -> None:
    (with_it, moved), (without, expected) = _gradients(True), _gradients(False)
    assert with_it.keys() == without.keys()
    assert all(torch.allclose(with_it[name], without[name], atol=1e-7) for name in without)
    assert all(torch.equal(moved[name], expected[name]) for name in expected)


def test_finish_puts_scores_and_maps_of_held_out_normals_on_one_scale() -> None:
    model, rows = _settled(scores=("reconstruction", "alignment")), []
    held_out = [_volumes(3, seed) for seed in (1, 2)]
    with torch.no_grad():
        parts = [model.maps(x) for x in held_out]
        wide = [F.interpolate(found.distances[:, None], scale_factor=8.0) for *_, found in parts]
        raw = torch.cat([torch.cat((p[0], w), dim=1) for p, w in zip(parts, wide, strict=True)]).numpy()
    model.finish([], held_out, rows.append)
    with torch.no_grad():
        found = [model(x) for x in held_out]
    scores = torch.cat([f["score"] for f in found])
    assert scores.mean().item() == pytest.approx(0, abs=1e-3)
    z = (raw - raw.mean(axis=(0, 2, 3, 4), keepdims=True)) / raw.std(axis=(0, 2, 3, 4), keepdims=True)
    heatmaps = torch.cat([f["heatmap"] for f in found]).numpy()
    assert heatmaps[:, 0] == pytest.approx(np.maximum(z.mean(axis=1), 0), abs=1e-3)
    assert {"reconstruction_mean", "alignment_std"} <= {name for row in rows for name in row}


def test_finish_without_normals_says_so() -> None:
    with pytest.raises(MedadError, match="no normal volumes"):
        _settled().finish([], [], lambda _: None)


@torch.no_grad()
def test_ties_are_told_for_every_code() -> None:
    model, x = _settled(), _volumes(2)
    gaps = model.ties(x)["codes"]
    assert gaps.shape == model(x)["codes"].shape
    assert 0 <= gaps.min() <= gaps.max() <= 1
    model.quantizer.codebook[1:] = model.quantizer.codebook[0]
    assert model.ties(x)["codes"].max() == 0


@torch.no_grad()
def test_a_planted_defect_raises_score_and_heatmap_there() -> None:
    model, x = _settled(), _volumes(1) * 0.5
    planted = x.clone()
    planted[..., 8:16, 8:16, 8:16] = 1
    before, after = model(x), model(planted)
    assert after["score"] > before["score"]
    assert after["heatmap"][..., 10:14, 10:14, 10:14].mean() > 4 * after["heatmap"].mean()


@pytest.mark.parametrize(
    ("settings", "fault"),
    [({"smoothing": 4}, "odd"), ({"scores": ()}, "reconstruction, alignment"), ({"hidden": ()}, "one to five")],
)
def test_settings_that_cannot_be_are_named(settings: dict[str, object], fault: str) -> None:
    with pytest.raises(MedadError, match=fault):
        _build(**settings)


def test_sizes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(MedadError, match="60x64x64 .* divide by 8"):
        CHOSEN.build(PrepSpec(size=(60, 64, 64)))
    with pytest.raises(MedadError, match="depth, height and width"):
        CHOSEN.build(PrepSpec(size=(64, 64)))


def test_moments_are_numpys() -> None:
    values = torch.randn(5, 3, 4, 6, generator=torch.Generator().manual_seed(0)) * 3 + 7
    scale, moments = ZScore(3), Moments()
    moments.add(values[:2])
    moments.add(values[2:])
    scale.take(moments)
    assert scale.mean.numpy() == pytest.approx(values.numpy().mean(axis=(0, 2, 3)), rel=1e-5)
    assert scale.std.numpy() == pytest.approx(values.numpy().std(axis=(0, 2, 3)), rel=1e-5)
    z = scale(values).numpy()
    assert z.std(axis=(0, 2, 3)) == pytest.approx(np.ones(3), rel=1e-5)


def test_a_single_value_has_no_deviation_to_divide_by() -> None:
    scale, moments = ZScore(1), Moments()
    moments.add(torch.tensor([[4.0]]))
    scale.take(moments)
    assert scale(torch.tensor([[6.0]])).item() == 2
