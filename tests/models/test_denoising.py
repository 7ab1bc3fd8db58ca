from __future__ import annotations

from typing import cast

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from medad_serve.errors import MedadError
from medad_serve.models import Batch, family
from medad_serve.models.denoising import DenoisingAutoencoder, NoiseSettings, coarse_noise, enclosed, eroded
from medad_serve.spec import PrepSpec

SMALL = {"widths": [8, 16], "margin": 3}


def _model(**settings: object) -> DenoisingAutoencoder:
    torch.manual_seed(0)
    return cast(DenoisingAutoencoder, family("dae").build(settings={**SMALL, **settings}).eval())


def _heads(n: int, seed: int = 0, size: int = 128) -> Tensor:
    """Symmetric heads: a skull, a brain, two ventricles; ``(n, 1, size, size)``."""
    rng, images = np.random.default_rng(seed), np.zeros((n, size, size), np.float32)
    middle = (size // 2, size // 2)
    for image in images:
        radius = int(rng.integers(size * 0.35, size * 0.43))
        cv2.circle(image, middle, radius, 1.0, -1)
        cv2.circle(image, middle, radius - 6, float(rng.uniform(0.35, 0.45)), -1)
        for side in (-1, 1):
            cv2.ellipse(image, (middle[0] + side * 8, middle[1]), (4, 14), 0, 0, 360, 0.1, -1)
        image += rng.normal(0, 0.02, image.shape).astype(np.float32) * (image > 0)
    return torch.from_numpy(images.clip(0, 1))[:, None]


def _identity(model: DenoisingAutoencoder, reconstruction: Tensor) -> DenoisingAutoencoder:
    """Let the network return a given image, so that the score alone is tested."""

    class Given(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return reconstruction

    model.network = Given()  # type: ignore[assignment]
    return model


def _kinks(noise: Tensor, axis: int) -> list[int]:
    """Rows or columns where ``noise (H, W)`` bends or breaks, its ends joined: those that the grid's lines became."""
    bend = (torch.roll(noise, 1, axis) + torch.roll(noise, -1, axis) - 2 * noise).abs().amax(1 - axis)
    return torch.nonzero(bend > 1e-5)[:, 0].tolist()


@pytest.mark.parametrize("cells", [4, 16])
def test_noise_is_drawn_on_a_grid_with_the_stated_deviation_and_rolled(cells: int) -> None:
    torch.manual_seed(0)
    # 60 pixels between the first line of the grid and the last: every line falls on a pixel.
    noise = coarse_noise(torch.zeros(150, 1, 61, 61), NoiseSettings(std=(0.3, 0.3), cells=(cells,)))[:, 0]
    drawn, places = [], set()
    for item in noise:
        rows, columns = _kinks(item, 0), _kinks(item, 1)
        assert len(rows) == len(columns) == cells
        drawn.append(item[rows][:, columns])
        places.add((rows[0], columns[0]))
    values = torch.stack(drawn)
    assert float(values.std()) == pytest.approx(0.3, abs=0.3 * 4 / (2 * values.numel()) ** 0.5)
    assert abs(float(values.mean())) < 4 * 0.3 / values.numel() ** 0.5
    assert len(places) > 10


def test_each_item_has_a_deviation_of_its_own_within_the_range() -> None:
    torch.manual_seed(0)
    settings = NoiseSettings(std=(0.1, 0.4), cells=(61,))
    found = coarse_noise(torch.zeros(200, 1, 61, 61), settings).flatten(1).std(1)
    assert 0.09 < found.min() < 0.13
    assert 0.37 < found.max() < 0.42
    assert float(found.mean()) == pytest.approx(0.25, abs=0.03)


def test_noise_stays_in_the_foreground() -> None:
    model, x = _model().train(), _heads(6)
    added = model.corrupt(x) - x
    assert added[x <= 0.05].abs().max() == 0
    assert (added[x > 0.05] != 0).float().mean() > 0.99


def test_validation_draws_the_same_noise_and_training_another() -> None:
    model, x = _model(), _heads(3)
    with torch.no_grad():
        losses = [model.loss(Batch.of(x))["loss"] for _ in range(2)]
        assert torch.equal(*losses)
        assert torch.equal(losses[0], torch.nn.functional.mse_loss(model.network(model.corrupt(x)), x))
        model.train()
        assert not torch.equal(model.corrupt(x), model.corrupt(x))


def test_enclosed_fills_what_has_foreground_on_all_four_sides() -> None:
    rng = np.random.default_rng(0)
    mask = rng.random((5, 24, 31)) < 0.08
    either = [np.logical_or.accumulate(mask, axis) for axis in (1, 2)]
    other = [np.flip(np.logical_or.accumulate(np.flip(mask, axis), axis), axis) for axis in (1, 2)]
    expected = either[0] & either[1] & other[0] & other[1]
    found = enclosed(torch.from_numpy(mask[:, None].astype(np.float32)))
    assert np.array_equal(found[:, 0].numpy() > 0, expected)


def test_erosion_is_that_of_a_square_and_eats_from_the_border_too() -> None:
    mask = np.random.default_rng(0).random((3, 40, 40)) < 0.97
    found = eroded(torch.from_numpy(mask[:, None].astype(np.float32)), 2)[:, 0].numpy() > 0
    for one, expected in zip(found, mask, strict=True):
        assert np.array_equal(one, ndimage.binary_erosion(expected, np.ones((5, 5))))


def _expected(x: NDArray[np.float32], made: NDArray[np.float32], signed: bool, symmetry: float) -> NDArray[np.float64]:
    """The map by scipy, for a smoothing of 5 and a margin of 3."""
    head = ndimage.binary_fill_holes(x > 0.05)
    mask = ndimage.binary_erosion(head, np.ones((7, 7)))
    difference = np.where(mask & (x < 0.98), (x - made).astype(np.float64), 0)
    smooth = ndimage.uniform_filter(difference, 5, mode="constant")
    error = np.maximum(smooth, 0) if signed else np.abs(smooth)
    mirrored = ndimage.maximum_filter(error, 5, mode="constant")[:, ::-1]
    return np.asarray(np.maximum(error - symmetry * mirrored, 0) * mask)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("symmetry", [0.0, 0.5])
def test_heatmap_and_score_equal_scipys(signed: bool, symmetry: float) -> None:
    x = _heads(3)
    made = x + 0.2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    model = _model(smoothing=5, symmetry=symmetry, top=0.01, residual="positive" if signed else "absolute")
    found = _identity(model, made)(x)
    for item in range(3):
        expected = _expected(x[item, 0].numpy(), made[item, 0].numpy(), signed, symmetry)
        assert np.allclose(found["heatmap"][item, 0], expected, atol=1e-5)
        largest = np.sort(expected, axis=None)[-164:]  # 1 % of 128 x 128
        assert float(found["score"][item]) == pytest.approx(largest.mean(), rel=1e-4)


def test_only_the_absolute_residual_sees_what_is_darker_than_expected() -> None:
    x = _heads(1)
    made = x.clone()
    made[..., 50:60, 40:50] += 0.3
    assert _identity(_model(residual="positive"), made)(x)["score"] == 0
    assert _identity(_model(residual="absolute"), made)(x)["score"] > 0.1


def test_values_that_the_window_clipped_are_not_compared_unless_asked() -> None:
    x = _heads(1)
    made = x.clone()
    x[..., 50:60, 40:50] = 1.0
    assert _identity(_model(), made)(x)["score"] == 0
    assert _identity(_model(ceiling=None), made)(x)["score"] > 0.1


def test_an_error_on_one_side_outweighs_the_same_on_both() -> None:
    one, both = _heads(1), _heads(1)
    one[..., 55:65, 40:50] += 0.3
    both[..., 55:65, 40:50] += 0.3
    both[..., 55:65, 78:88] += 0.3  # the mirrored columns of 128
    for symmetry, ratio in ((0.5, (0.4, 0.6)), (0.0, (0.99, 1.2))):
        scores = [float(_identity(_model(symmetry=symmetry), _heads(1))(x)["score"]) for x in (one, both)]
        assert ratio[0] < scores[1] / scores[0] < ratio[1]


def test_a_trained_model_finds_a_planted_bleed() -> None:
    torch.manual_seed(0)
    settings = {"widths": [8, 16], "margin": 6, "smoothing": 5}
    model = family("dae").build(PrepSpec(size=(64, 64)), settings).train()
    optimizer, heads = torch.optim.Adam(model.parameters(), 1e-2), _heads(64, size=64)
    for step in range(200):
        optimizer.zero_grad()
        model.loss(Batch.of(heads[step * 8 % 64 :][:8]))["loss"].backward()
        optimizer.step()
    healthy = _heads(12, seed=1, size=64)
    bleeding = healthy.clone()
    rows, columns = np.ogrid[:64, :64]
    disc = torch.from_numpy(np.hypot(rows - 26, columns - 20) < 5)
    bleeding[..., disc] += 0.3
    with torch.no_grad():
        normal, found = model.eval()(healthy), model(bleeding)
    assert (found["score"] > 1.5 * normal["score"]).all()
    for heatmap in found["heatmap"][:, 0]:
        assert disc.flatten()[heatmap.argmax()]


def test_sizes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(MedadError, match="100x128 does not divide by 16"):
        family("dae").build(PrepSpec(size=(100, 128)))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"smoothing": 4}, "must be odd"),
        ({"widths": [8, 10]}, "multiples of 4"),
        ({"noise": {"std": [0.3, 0.1]}}, "rising"),
        ({"noise": {"cells": []}}, "whole numbers from 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, object], reason: str) -> None:
    with pytest.raises(MedadError, match=reason):
        family("dae").build(settings=settings)
