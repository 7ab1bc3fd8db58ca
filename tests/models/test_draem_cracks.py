from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from medad_serve.errors import MedadError
from medad_serve.models.draem import FaultGenerator, FaultSettings
from medad_serve.models.draem.cracks import MOST, SEGMENTS, Cracks, crack, draw_cracks
from medad_serve.models.draem.draws import Draws
from medad_serve.spec import validated


def _draws(n: int, seed: int = 0) -> Draws:
    return Draws(n, torch.Generator().manual_seed(seed))


def _straight(width: float) -> Cracks:
    """One crack from the middle of the left border straight across half the image."""
    return Cracks(
        start=torch.tensor([0.5, 0.0]).expand(1, MOST, 2).clone(),
        headings=torch.zeros(1, MOST, SEGMENTS),
        length=torch.full((1, MOST), 0.5),
        width=torch.full((1, MOST), width),
        made=torch.ones(1, dtype=torch.long),
        sign=-torch.ones(1),
    )


@pytest.mark.parametrize("width", [1.0, 2.5, 6.0])
def test_a_straight_crack_is_as_wide_and_long_as_drawn(width: float) -> None:
    x = torch.full((1, 1, 64, 64), 0.8)
    made, mask = crack(x, _straight(width), torch.ones(1), FaultSettings(crack_contrast=0.5))
    lost = (x - made)[0, 0] / 0.5
    assert lost[:, 8:24].sum(dim=0).tolist() == pytest.approx([width] * 16, abs=0.51)
    assert 31 <= (lost.sum(dim=0) > width / 2).sum() <= 33 + width / 2  # its ends are round
    assert lost[:, 40:].sum() == 0
    assert torch.equal(lost > 0, mask[0, 0] > 0)


def test_a_crack_keeps_its_distance_to_the_drawn_line() -> None:
    cracks = draw_cracks(FaultSettings(crack_width_range=(2, 2)), _draws(12))._replace(made=torch.ones(12).long())
    _, mask = crack(torch.full((12, 1, 80, 60), 0.5), cracks, torch.ones(12), FaultSettings())
    for i in range(12):
        headings = cracks.headings[i, 0].numpy()
        steps = np.stack([np.sin(headings), np.cos(headings)], axis=1)
        points = np.cumsum(steps * float(cracks.length[i, 0]) * 80 / SEGMENTS, axis=0)
        points = cracks.start[i, 0].numpy() * [80, 60] + np.concatenate([np.zeros((1, 2)), points])
        along = np.concatenate([np.linspace(a, b, 200) for a, b in pairwise(points)])
        rows, columns = np.nonzero(mask[i, 0].numpy())
        apart = np.hypot(rows[:, None] + 0.5 - along[:, 0], columns[:, None] + 0.5 - along[:, 1]).min(axis=1)
        assert apart.max() < 1.0 + 0.5
        inside = along[((along > 0.5) & (along < [79.5, 59.5])).all(axis=1)].astype(int)
        near = ndimage.binary_dilation(mask[i, 0].numpy() > 0)
        assert near[inside[:, 0], inside[:, 1]].all()


@given(st.integers(0, 2**31), st.sampled_from([(1.0, 1.0), (1.0, 6.0)]))
def test_every_cracked_image_changes_within_its_mask_alone(seed: int, widths: tuple[float, float]) -> None:
    settings = FaultSettings(cracks=1.0, probability=1.0, patch_width_range=(4, 8), crack_width_range=widths)
    x = torch.full((8, 1, 32, 32), 0.5)
    made = FaultGenerator(settings, (32, 32))(x, _draws(8, seed))
    changed = (made.synthetic_image != x).flatten(1)
    assert changed.any(dim=1).all()
    assert torch.equal(changed, made.fault_mask.flatten(1) > 0)
    most = (made.synthetic_image - x).abs().flatten(1).amax(dim=1)
    limit = made.severity_label / settings.severity_max * settings.crack_contrast
    assert (most <= limit + 1e-6).all()
    assert (most >= 0.25 * limit).all()


def test_the_share_of_cracked_images_is_the_one_asked_for() -> None:
    settings = FaultSettings(cracks=0.3, probability=1.0, patch_width_range=(4, 8), contrast=0.0, softness=0)
    x = torch.full((2000, 1, 32, 32), 0.5)  # patches of a plain image without contrast change nothing
    made = FaultGenerator(settings, (32, 32))(x, _draws(2000))
    cracked = (made.synthetic_image != x).flatten(1).any(dim=1).float().mean().item()
    assert cracked == pytest.approx(0.3, abs=0.035)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cracks": 1.5}, "cracks"),
        ({"crack_width_range": (0.5, 3)}, "crack_width_range"),
        ({"crack_length_range": (0.5, 0.2)}, "crack_length_range"),
        ({"crack_length_range": (0, 0.2)}, "above 0"),
    ],
)
def test_cracks_that_cannot_be_are_refused_by_name(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(MedadError, match=said):
        validated(FaultSettings, changes, "settings of model draem")
