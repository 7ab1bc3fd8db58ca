from __future__ import annotations

import monai.transforms
import numpy as np
import pytest
import torch
from scipy import ndimage

from medad_serve.models import Batch
from medad_serve.training.augment import Augment, AugmentSettings, resample

ALL = {
    "flip": 0.5,
    "rotate_degrees": 15,
    "translate": 0.05,
    "scale": 0.1,
    "noise_std": 0.02,
    "brightness": 0.1,
    "contrast": 0.1,
}


def _smooth(*size: int, seed: int = 0) -> torch.Tensor:
    """One item (1, 1, *size) without detail at the size of a voxel."""
    noise = np.random.default_rng(seed).random(size)
    values = ndimage.gaussian_filter(noise, 3)
    return torch.from_numpy((values - values.min()) / np.ptp(values)).float()[None, None]


def _resampled(x: torch.Tensor, degrees: float = 0, shift: tuple[float, float] = (0, 0), zoom: float = 1) -> np.ndarray:
    return resample(x, torch.tensor([degrees]), torch.tensor([shift]), torch.tensor([zoom]))[0, 0].numpy()


def _drawn(x: torch.Tensor, seed: int = 0, **settings: float) -> torch.Tensor:
    return Augment(AugmentSettings(**settings), seed)(Batch.of(x)).x


def test_nothing_is_on_unless_set() -> None:
    x = torch.rand(3, 1, 16, 16)
    assert _drawn(x) is x


def test_labels_and_rows_stay() -> None:
    batch = Batch(torch.rand(2, 1, 8, 8), torch.tensor([0, 1]), torch.tensor([7, 4]))
    found = Augment(AugmentSettings(**ALL, probability=1), 0)(batch)
    assert found.labels is batch.labels
    assert found.rows is batch.rows
    assert not torch.equal(found.x, batch.x)


@pytest.mark.parametrize("size", [(9, 12), (6, 9, 12)])
def test_a_flip_turns_left_and_right_around(size: tuple[int, ...]) -> None:
    x = torch.rand(4, 1, *size)
    assert torch.equal(_drawn(x, flip=1), x.flip(-1))


def test_a_flip_comes_as_often_as_asked() -> None:
    x = torch.arange(2.0).expand(4000, 1, 1, 2)
    flipped = (_drawn(x, flip=0.3)[:, 0, 0, 0] == 1).float().mean().item()
    assert flipped == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize("size", [(40, 56), (10, 40, 56)])
@pytest.mark.parametrize("degrees", [-15, 9])
def test_rotation_is_scipys_within_the_plane(size: tuple[int, ...], degrees: float) -> None:
    x = _smooth(*size)
    expected = ndimage.rotate(x[0, 0].numpy(), degrees, (-2, -1), reshape=False, order=1, mode="nearest")
    assert np.abs(_resampled(x, degrees) - expected).max() < 1e-4


def test_a_shift_is_a_share_of_height_and_width() -> None:
    x = _smooth(12, 40, 56)
    expected = ndimage.shift(x[0, 0].numpy(), (0, 2.0, 1.68), order=1, mode="nearest")
    assert np.abs(_resampled(x, shift=(0.05, 0.03)) - expected).max() < 1e-4


def test_rotation_zoom_and_shift_together_are_monais() -> None:
    x, zoom = _smooth(12, 40, 56), 1.2
    affine = monai.transforms.Affine(
        rotate_params=(np.deg2rad(-11), 0, 0),
        translate_params=(0, -0.05 * 40 / zoom, -0.03 * 56 / zoom),
        scale_params=(1 / zoom,) * 3,
        mode="bilinear",
        padding_mode="border",
        image_only=True,
    )
    found = _resampled(x, degrees=11, shift=(0.05, 0.03), zoom=zoom)
    assert np.abs(found - affine(x[0]).numpy()[0]).max() < 1e-4


def test_zoom_is_the_same_along_every_axis() -> None:
    axes = torch.meshgrid(*[torch.arange(n) - (n - 1) / 2 for n in (24, 32, 40)], indexing="ij")
    for axis in axes:
        found = _resampled(axis[None, None].contiguous(), zoom=1.25)
        inside = np.s_[4:-4, 4:-4, 4:-4]
        assert np.abs(found - axis.numpy() / 1.25)[inside].max() < 1e-4


def test_draws_lie_within_what_is_set() -> None:
    ramp = (torch.arange(64.0) - 31.5).expand(500, 1, 64, 64).contiguous()
    shifts = ramp[:, 0, 32, 32] - _drawn(ramp, translate=0.05, probability=1)[:, 0, 32, 32]
    assert 0.9 * 3.2 < shifts.abs().max() <= 3.2001
    assert abs(shifts.mean().item()) < 0.3


def test_brightness_and_contrast_are_linear_about_the_mean() -> None:
    x = 0.4 + 0.2 * torch.rand(200, 1, 8, 8)
    mean = x.mean(dim=(1, 2, 3))
    brighter = _drawn(x, brightness=0.1, probability=1) - x
    assert brighter.flatten(1).std(dim=1).max() < 1e-6
    assert 0.09 < brighter.abs().max() <= 0.1001
    stretched = _drawn(x, contrast=0.2, probability=1)
    assert torch.allclose(stretched.mean(dim=(1, 2, 3)), mean, atol=1e-5)
    factor = stretched.flatten(1).std(dim=1) / x.flatten(1).std(dim=1)
    assert 0.8 <= factor.min() < 0.82 < 1.18 < factor.max() <= 1.2001


def test_noise_has_its_standard_deviation() -> None:
    x = torch.full((4, 1, 50, 50), 0.5)
    assert (_drawn(x, noise_std=0.03, probability=1) - x).std().item() == pytest.approx(0.03, rel=0.05)


@pytest.mark.parametrize("size", [(24, 20), (12, 24, 20)])
def test_values_stay_in_range_and_finite(size: tuple[int, ...]) -> None:
    x = torch.rand(6, 1, *size) * 2 - 1
    found = Augment(AugmentSettings(**ALL, probability=1), 3, (-1, 1))(Batch.of(x)).x
    assert found.shape == x.shape
    assert found.dtype == x.dtype
    assert -1 <= found.min() < found.max() <= 1


def test_the_same_seed_draws_the_same() -> None:
    x = torch.rand(4, 1, 8, 16, 16)
    first, second = (Augment(AugmentSettings(**ALL), 5) for _ in range(2))
    for _ in range(3):
        assert torch.equal(first(Batch.of(x)).x, second(Batch.of(x)).x)
    assert not torch.equal(_drawn(x, 5, **ALL), _drawn(x, 6, **ALL))


def test_some_items_stay_as_they_are() -> None:
    x = torch.rand(400, 1, 8, 8)
    same = (_drawn(x, rotate_degrees=15, probability=0.25) == x).flatten(1).all(dim=1).float().mean().item()
    assert same == pytest.approx(0.75, abs=0.07)
