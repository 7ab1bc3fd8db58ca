from __future__ import annotations

import pytest
import torch
from monai.losses import FocalLoss
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.image import structural_similarity_index_measure

from medad_serve.models.draem.losses import focal, ssim


def _pair(shape: tuple[int, ...], noise: float) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    a = torch.rand(shape)
    return a, (a + noise * torch.randn(shape)).clamp(0, 1)


@pytest.mark.parametrize("shape", [(2, 1, 64, 48), (3, 2, 11, 40)])
@pytest.mark.parametrize("noise", [0.02, 0.3])
def test_ssim_is_torchmetrics_where_the_window_lies_in_the_image(shape: tuple[int, ...], noise: float) -> None:
    a, b = _pair(shape, noise)
    _, full = structural_similarity_index_measure(a, b, data_range=1.0, return_full_image=True)
    assert ssim(a, b, 1.0).item() == pytest.approx(full[..., 5:-5, 5:-5].mean().item(), abs=1e-5)


def test_ssim_has_the_gradient_that_torchmetrics_has() -> None:
    a, b = _pair((2, 1, 24, 24), 0.1)
    ours, theirs = a.clone().requires_grad_(), a.clone().requires_grad_()
    ssim(ours, b, 1.0).backward()
    _, full = structural_similarity_index_measure(theirs, b, data_range=1.0, return_full_image=True)
    full[..., 5:-5, 5:-5].mean().backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-6)


def test_ssim_follows_the_value_range_and_is_1_for_equal_images() -> None:
    a, b = _pair((2, 1, 32, 32), 0.1)
    assert ssim(a, a, 1.0).item() == pytest.approx(1.0, abs=1e-6)
    assert ssim(255 * a, 255 * b, 255.0).item() == pytest.approx(ssim(a, b, 1.0).item(), abs=1e-4)


def test_ssim_keeps_single_precision_under_autocast() -> None:
    a, b = _pair((2, 1, 64, 64), 0.05)
    expected = ssim(a, b, 1.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ssim(a, b, 1.0), expected)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_is_monais(gamma: float) -> None:
    torch.manual_seed(0)
    logits, target = 3 * torch.randn(4, 2, 9, 7), torch.randint(2, (4, 9, 7))
    # Its mean counts both classes, of which the one that is not true weighs nothing.
    theirs = FocalLoss(gamma=gamma, use_softmax=True, to_onehot_y=True)(logits, target[:, None])
    assert focal(logits, target, gamma).item() == pytest.approx(2 * theirs.item(), rel=1e-4)


def test_focal_of_gamma_0_is_cross_entropy() -> None:
    logits, target = torch.randn(4, 2, 9, 7), torch.randint(2, (4, 9, 7))
    assert focal(logits, target, 0.0).item() == pytest.approx(F.cross_entropy(logits, target).item(), rel=1e-5)
