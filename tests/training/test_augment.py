from __future__ import annotations

import cv2
import monai.transforms
import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn import functional as F

from medad_serve.models import Batch
from medad_serve.training.augment import Augment, AugmentSettings, blurred, compressed, resample

ALL = {
    "flip": 0.5,
    "rotate_degrees": 15,
    "translate": 0.05,
    "scale": 0.1,
    "noise_std": 0.02,
    "brightness": 0.1,
    "contrast": 0.1,
    "crop": 0.2,
    "blur_sigma": 1.0,
    "gamma": 0.3,
}
OF_FRAMES = {"clahe": 0.5, "jpeg": 0.5}


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


def test_a_crop_is_a_window_inside_the_item() -> None:
    """Places are read off ramps: what is seen lies within the item and is as wide as tall."""
    side, most = 64, 0.4
    ramp = torch.arange(float(side)).expand(500, 1, side, side).contiguous()
    seen = Augment(AugmentSettings(crop=most, probability=1), 0, (0, side - 1)).items(ramp)[:, 0]
    step = (seen[:, 32, 48] - seen[:, 32, 16]) / 32
    assert 1 - most <= step.min() < 1 - 0.9 * most
    assert 0.95 < step.max() <= 1
    first = seen[:, 32, 16] - 16 * step
    assert first.min() > -0.5
    assert (first + 63 * step).max() < side - 0.5
    assert first.max() > 0.3 * side
    again = Augment(AugmentSettings(crop=most, probability=1), 0, (0, side - 1)).items(ramp.transpose(2, 3))[:, 0]
    assert torch.allclose((again[:, 48, 32] - again[:, 16, 32]) / 32, step, atol=1e-4)


def test_a_window_is_the_one_that_torchvision_cuts_out() -> None:
    from torchvision.transforms.v2.functional import resized_crop

    x = _smooth(64, 64)
    found = _resampled(x, shift=(4 / 48, -8 / 48), zoom=64 / 48)  # middle 4 rows above and 8 columns beyond
    expected = resized_crop(x, 4, 16, 48, 48, [64, 64], antialias=False)[0, 0].numpy()
    assert np.abs(found - expected)[2:-2, 2:-2].max() < 1e-4


@pytest.mark.parametrize("size", [(40, 56), (20, 24, 28)])
def test_blur_is_scipys_gaussian_over_what_lies_inside(size: tuple[int, ...]) -> None:
    x, sigma = torch.rand(2, 1, *size), [0.7, 2.0]
    found = blurred(x, torch.tensor(sigma))
    for item, blur, std in zip(x[:, 0], found[:, 0], sigma, strict=True):
        inside = ndimage.gaussian_filter(np.ones(size), std, mode="constant", truncate=8)
        expected = ndimage.gaussian_filter(item.numpy().astype(float), std, mode="constant", truncate=8) / inside
        assert np.abs(blur.numpy() - expected).max() < 1e-4


def test_a_blur_of_nothing_leaves_the_item() -> None:
    x = torch.rand(2, 1, 16, 16)
    assert torch.equal(blurred(x, torch.zeros(2)), x)


def test_blur_is_drawn_up_to_its_sigma() -> None:
    points = torch.zeros(300, 1, 31, 31)
    points[:, :, 15, 15] = 1
    peaks = _drawn(points, blur_sigma=2, probability=1)[:, 0, 15, 15]
    assert 1 / (2 * np.pi * 4) * 0.99 < peaks.min() < 1 / (2 * np.pi * 4) * 1.1
    assert peaks.max() > 0.9


def test_gamma_is_a_power_of_the_scale_from_black_to_white() -> None:
    x = torch.full((400, 1, 4, 4), 0.25)
    found = Augment(AugmentSettings(gamma=0.5, probability=1), 0, (-1, 3)).items(4 * x - 1)[:, 0, 0, 0]
    exponent = ((found + 1) / 4).log() / np.log(0.25)
    assert np.exp(-0.5) * 0.999 <= exponent.min() < np.exp(-0.49)
    assert np.exp(0.49) < exponent.max() <= np.exp(0.5) * 1.001


def test_clahe_is_opencvs_on_bytes() -> None:
    x = torch.rand(2, 1, 48, 64)
    low, high = -2.0, 2.4
    found = Augment(AugmentSettings(clahe=1), 0, (low, high)).items(low + x * (high - low))
    for item, equal in zip(x[:, 0].numpy(), found[:, 0].numpy(), strict=True):
        expected = cv2.createCLAHE(2.0, (8, 8)).apply((item * 255).round().astype(np.uint8))
        assert np.abs((equal - low) / (high - low) * 255 - expected).max() < 1e-3


def test_clahe_comes_as_often_as_asked() -> None:
    x = (torch.arange(256.0).view(16, 16) / 255 * 0.3).expand(400, 1, 16, 16).contiguous()
    changed = (_drawn(x, clahe=0.3, probability=1) != x).flatten(1).any(dim=1).float().mean().item()
    assert changed == pytest.approx(0.3, abs=0.07)


def test_jpeg_is_that_of_pillow_too() -> None:
    from io import BytesIO

    from PIL import Image

    frame = (_smooth(64, 64)[0, 0].numpy() * 255).astype(np.uint8)
    for quality in (20, 90):
        file = BytesIO()
        Image.fromarray(frame).save(file, "JPEG", quality=quality)
        expected = np.asarray(Image.open(file)).astype(int)
        assert np.abs(compressed(frame, quality).astype(int) - expected).max() <= 2


def test_jpeg_draws_qualities_from_the_lowest_up() -> None:
    x = torch.rand(100, 1, 32, 32)
    off = (_drawn(x, jpeg=1, jpeg_quality=10) - x).flatten(1).std(dim=1)
    assert (off > 0).all()
    assert off.max() > 4 * off.min()
    assert (_drawn(x, jpeg=1, jpeg_quality=95) - x).flatten(1).std(dim=1).max() < 1.5 * off.min()


def test_volumes_have_neither_clahe_nor_jpeg() -> None:
    for name in OF_FRAMES:
        with pytest.raises(ValueError, match="for frames"):
            _drawn(torch.rand(1, 1, 8, 8, 8), **{name: 0.5})


def test_frames_with_everything_stay_in_range_and_the_same_by_seed() -> None:
    x = torch.randn(8, 1, 40, 40).clamp(-1.99, 2.44)
    settings = AugmentSettings(**ALL, **OF_FRAMES)
    found, again = (Augment(settings, 4, (-1.99, 2.44)).items(x) for _ in range(2))
    assert torch.equal(found, again)
    assert -1.9901 <= found.min() < found.max() <= 2.4401
    assert found.dtype == x.dtype


@pytest.mark.parametrize("size", [(40, 56), (10, 40, 56)])
def test_each_axis_can_grow_by_its_own(size: tuple[int, ...]) -> None:
    x, zoom = _smooth(*size), np.array([1.0, 1.3, 0.8][-len(size) :])
    middle = (np.array(size) - 1) / 2
    expected = ndimage.affine_transform(
        x[0, 0].numpy(), np.diag(1 / zoom), middle - middle / zoom, order=1, mode="nearest"
    )
    found = resample(x, torch.zeros(1), torch.zeros(1, 2), torch.from_numpy(zoom)[None].float())[0, 0].numpy()
    assert np.abs(found - expected).max() < 1e-4


def test_aspect_stretches_width_against_height_within_what_is_set() -> None:
    side = 64
    ramp = torch.arange(float(side)).expand(300, 1, side, side)
    both = torch.cat([ramp, ramp.transpose(2, 3)], dim=1).contiguous()
    seen = Augment(AugmentSettings(aspect=0.3, probability=1), 0, (0, side - 1)).items(both)
    across = (seen[:, 0, 32, 40] - seen[:, 0, 32, 24]) / 16
    down = (seen[:, 1, 40, 32] - seen[:, 1, 24, 32]) / 16
    assert torch.allclose(across * down, torch.ones(300), atol=1e-4)
    stretch = (down / across).log()
    assert -0.3001 <= stretch.min() < -0.27
    assert 0.27 < stretch.max() <= 0.3001


def test_volumes_are_resampled_as_by_one_trilinear_interpolation() -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.rand((2, 1, 7, 9, 12), generator=rng)
    degrees, shift, zoom = torch.tensor([0.0, 25.0]), torch.tensor([[0.1, 0.0], [0.0, -0.2]]), torch.tensor([0.8, 1.3])
    expected = []
    for item, angle, moved, grown in zip(x, degrees.deg2rad(), shift, zoom, strict=True):
        depth, row, column = torch.meshgrid(*(torch.arange(n) - (n - 1) / 2 for n in item.shape[1:]), indexing="ij")
        row, column = row - moved[0] * 9, column - moved[1] * 12  # where each voxel was before it moved, turned, grew
        turned = (angle.cos() * column - angle.sin() * row, angle.sin() * column + angle.cos() * row, depth)
        grid = torch.stack([2 * at / grown / n for at, n in zip(turned, (12, 9, 7), strict=True)], dim=-1)
        trilinear = F.grid_sample(item[None], grid[None], padding_mode="border", align_corners=False)
        expected.append(trilinear[0])
    assert (resample(x, degrees, shift, zoom) - torch.stack(expected)).abs().max() < 1e-5
