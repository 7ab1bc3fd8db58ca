from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn import functional as F

from medad_serve.models.smoothing import box_max, box_mean, channel_mean, enlarged, repeated, squared_error

SHAPES = [(2, 1, 17, 13), (2, 3, 9, 7, 11)]
SIDES = [3, 5, 7, 9, 21]
"""The last is longer than any axis."""


def _values(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=shape)).float()


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_padded_mean_is_that_of_scipy(shape: tuple[int, ...], side: int) -> None:
    x = _values(shape)
    expected = ndimage.uniform_filter(x.double().numpy(), (1, 1, *[side] * (len(shape) - 2)), mode="constant")
    assert np.allclose(box_mean(x, side).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_unpadded_mean_is_over_what_lies_within(shape: tuple[int, ...], side: int) -> None:
    x = _values(shape)
    sums, counts = (
        ndimage.uniform_filter(v, (1, 1, *[side] * (len(shape) - 2)), mode="constant")
        for v in (x.double().numpy(), np.ones(shape))
    )
    assert np.allclose(box_mean(x, side, padded=False).numpy(), sums / counts, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_maximum_is_that_of_scipy(shape: tuple[int, ...]) -> None:
    x = _values(shape)
    expected = ndimage.maximum_filter(x.numpy(), (1, 1, *[7] * (len(shape) - 2)), mode="constant", cval=-np.inf)
    assert np.array_equal(box_max(x, 7).numpy(), expected)


def test_a_side_of_one_changes_nothing() -> None:
    x = _values(SHAPES[0])
    assert torch.equal(box_mean(x, 1), x)
    assert torch.equal(box_max(x, 1), x)


@pytest.mark.parametrize("shape", SHAPES)
def test_repeated_values_are_those_of_numpy(shape: tuple[int, ...]) -> None:
    x, expected = _values(shape), _values(shape).numpy()
    for axis in range(2, len(shape)):
        expected = expected.repeat(3, axis)
    assert np.array_equal(repeated(x, 3).numpy(), expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_mean_of_channels_is_numpys(shape: tuple[int, ...]) -> None:
    x = _values(shape)
    assert np.allclose(channel_mean(x).numpy(), x.numpy().mean(axis=1, keepdims=True), atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_squared_error_is_averaged_over_channels(shape: tuple[int, ...]) -> None:
    x, other = _values(shape), _values(shape).flip(-1)
    expected = np.square(x.numpy() - other.numpy()).mean(axis=1, keepdims=True)
    assert np.allclose(squared_error(x, other).numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_mixed_precision_takes_no_digits(shape: tuple[int, ...]) -> None:
    x = _values(shape)
    expected = box_mean(x, 5), repeated(x, 3)
    with torch.autocast("cpu", torch.bfloat16):
        found = box_mean(x, 5), repeated(x, 3)
        half = box_mean(x.bfloat16(), 5)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert torch.equal(half, box_mean(x.bfloat16().float(), 5))


def test_gradients_are_those_of_the_pooling_in_one_step() -> None:
    x = _values(SHAPES[1]).requires_grad_()
    other = x.detach().clone().requires_grad_()
    box_mean(x, 3, padded=False).square().sum().backward()
    F.avg_pool3d(other, 3, stride=1, padding=1, count_include_pad=False).square().sum().backward()
    assert torch.allclose(x.grad, other.grad, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "size"),
    [((2, 1, 7, 7), (224, 224)), ((3, 2, 5, 4), (13, 40)), ((2, 1, 3, 4, 5), (24, 31, 5)), ((1, 1, 1, 1), (6, 3))],
)
def test_an_enlarged_map_is_interpolated_as_pytorch_does(
    shape: tuple[int, ...], size: tuple[int, ...], dtype: torch.dtype
) -> None:
    x, mode = _values(shape).to(dtype), "bilinear" if len(size) == 2 else "trilinear"
    expected = F.interpolate(x.double(), size=size, mode=mode, align_corners=False)
    found = enlarged(x, size)
    assert found.dtype == dtype
    # each axis rounds weights, of which two add up, and what it gives
    atol = 3 * len(size) * float(x.abs().max()) * torch.finfo(dtype).eps
    assert np.allclose(found.double().numpy(), expected.numpy(), rtol=0, atol=atol)
