from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor

from medad_serve.errors import MedadError
from medad_serve.models.draem.cut_paste import SHAPES, Patches, check_patches, cut_paste, draw_patches, soft_rim
from medad_serve.models.draem.draws import Draws
from medad_serve.models.draem.settings import FaultSettings, RatioRanges
from medad_serve.spec import validated

SIZE = (48, 64)


def _settings(**changes: Any) -> FaultSettings:
    return FaultSettings(**{"patch_width_range": (6, 20), "softness": 0, **changes})


def _images(n: int, size: tuple[int, int] = SIZE) -> Tensor:
    return torch.rand(n, 1, *size, generator=torch.Generator().manual_seed(1)) * 0.4 + 0.3


def _draws(n: int, seed: int = 0) -> Draws:
    return Draws(n, torch.Generator().manual_seed(seed))


def _patches(n: int, settings: FaultSettings, size: tuple[int, int] = SIZE, seed: int = 0) -> Patches:
    return draw_patches(size, settings, _draws(n, seed))


def test_widths_and_ratios_lie_in_their_ranges_and_patches_in_the_image() -> None:
    settings = FaultSettings()
    found = _patches(2000, settings, (256, 256))
    assert found.width.min() >= 20
    assert found.width.max() <= 80
    assert found.height.max() <= 256
    for edge, extent, side in ((found.top, found.height, 256), (found.left, found.width, 256)):
        assert edge.min() >= 0
        assert (edge + extent[:, None]).max() <= side
    low, high = (found.width - 0.5) / (found.height + 0.5), (found.width + 0.5) / (found.height - 0.5)
    forms = torch.tensor(settings.patch_ratio_range.forms)
    fits = (high[:, None] >= forms[:, 0]) & (low[:, None] <= forms[:, 1])
    assert fits.any(dim=1).all()


@pytest.mark.parametrize("form", ["landscape", "portrait", "square"])
def test_a_form_that_is_null_is_not_drawn(form: str) -> None:
    others = {name: None for name in ("landscape", "portrait", "square") if name != form}
    found = _patches(300, FaultSettings(patch_ratio_range=RatioRanges(**others)), (256, 256))
    ratio = found.width / found.height
    low, high = {"landscape": (1.8, 4.5), "portrait": (0.24, 0.52), "square": (1, 1)}[form]  # of whole pixels
    assert low <= ratio.min() <= ratio.max() <= high


def test_what_is_cut_lies_in_the_image_and_a_quarter_of_the_free_way_off() -> None:
    found = _patches(500, _settings())
    for start, source, extent, side in (
        (found.top, found.source_top, found.height, SIZE[0]),
        (found.left, found.source_left, found.width, SIZE[1]),
    ):
        free = side - extent[:, None]
        assert source.min() >= 0
        assert (source <= free).all()
        assert ((source - start).abs() >= (free + 1) / 4 - 1).all()


def test_a_rectangle_at_full_strength_is_what_lies_elsewhere_in_another_brightness() -> None:
    settings = _settings(patch_shapes=("rectangle",), patch_count=(1, 1), contrast=0.1)
    patches, x = _patches(20, settings), _images(20)
    made, mask = cut_paste(x, x, patches, torch.ones(20), settings)
    for i in range(20):
        top, left, down, across = (
            int(v[i, 0]) for v in (patches.top, patches.left, patches.source_top, patches.source_left)
        )
        height, width = int(patches.height[i]), int(patches.width[i])
        expected = x[i, 0].clone()
        cut = x[i, 0, down : down + height, across : across + width]
        expected[top : top + height, left : left + width] = cut + 0.1 * patches.sign[i]
        assert torch.allclose(made[i, 0], expected, atol=1e-6)
        assert mask[i].sum() == height * width


def test_the_change_is_proportional_to_the_strength() -> None:
    settings = _settings(values=(-5.0, 5.0), softness=2)
    patches, x = _patches(12, settings), _images(12)
    whole, mask = cut_paste(x, x, patches, torch.ones(12), settings)
    strength = torch.linspace(0.1, 0.9, 12)
    part, same = cut_paste(x, x, patches, strength, settings)
    assert torch.equal(mask, same)
    assert torch.allclose(part - x, strength.view(-1, 1, 1, 1) * (whole - x), atol=1e-5)


def test_nothing_outside_the_mask_changes_and_values_stay_in_range() -> None:
    settings = _settings(contrast=3.0, softness=1)
    patches, x = _patches(40, settings), _images(40)
    made, mask = cut_paste(x, x, patches, torch.ones(40), settings)
    assert torch.equal(made[mask == 0], x[mask == 0])
    assert made.min() >= 0
    assert made.max() <= 1
    assert mask.flatten(1).any(dim=1).all()


def _alone(shape: str, **changes: Any) -> tuple[Patches, np.ndarray[Any, Any]]:
    settings = _settings(patch_shapes=(shape,), patch_count=(1, 1), patch_width_range=(20, 40), **changes)
    size = (256, 256)
    patches = _patches(30, settings, size)
    _, mask = cut_paste(_images(30, size), _images(30, size), patches, torch.ones(30), settings)
    return patches, mask[:, 0].numpy() > 0


def test_an_ellipse_has_its_area() -> None:
    patches, masks = _alone("ellipse")
    expected = np.pi / 4 * (patches.width * patches.height).numpy()
    assert masks.sum(axis=(1, 2)) == pytest.approx(expected, rel=0.08)


def test_an_irregular_patch_lies_within_the_ellipse_and_is_in_one_piece() -> None:
    patches, masks = _alone("irregular")
    _, ellipses = _alone("ellipse")
    share = masks.sum(axis=(1, 2)) / ellipses.sum(axis=(1, 2))
    assert not (masks & ~ellipses).any()
    assert 0.3 < share.min() < share.max() < 0.85
    large = (torch.minimum(patches.height, patches.width) >= 20).numpy()
    assert all(ndimage.label(mask)[1] == 1 for mask in masks[large])
    assert len({mask.sum() for mask in masks}) > 20


def test_a_turned_rectangle_keeps_its_area() -> None:
    # Strips from side to side, turned, would leave the image: patches of a quarter of its side seldom do.
    patches, masks = _alone("rectangle", rotate_degrees=180, patch_ratio_range=RatioRanges(portrait=None))
    area = (patches.width * patches.height).numpy()
    inside = np.array([not (m[0].any() or m[-1].any() or m[:, 0].any() or m[:, -1].any()) for m in masks])
    assert inside.sum() > 15
    assert masks.sum(axis=(1, 2))[inside] == pytest.approx(area[inside], rel=0.12)
    assert any(mask.sum(axis=0).max() != h for mask, h in zip(masks, patches.height.tolist(), strict=True))


def test_patches_of_one_image_share_their_size_and_number_what_was_asked() -> None:
    settings = _settings(patch_shapes=("rectangle",), patch_count=(2, 3), patch_width_range=(4, 8))
    patches, size = _patches(200, settings, (128, 128)), (128, 128)
    _, mask = cut_paste(_images(200, size), _images(200, size), patches, torch.ones(200), settings)
    numbers = set()
    for i in range(200):
        pieces = ndimage.find_objects(ndimage.label(mask[i, 0].numpy())[0])
        apart = mask[i].sum() == patches.made[i] * patches.height[i] * patches.width[i]
        if apart and len(pieces) == patches.made[i]:
            numbers.add(len(pieces))
            found = {(p[0].stop - p[0].start, p[1].stop - p[1].start) for p in pieces}
            assert found == {(int(patches.height[i]), int(patches.width[i]))}
    assert numbers == {2, 3}


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_share_of_darker_patches_is_the_one_asked_for(share: float) -> None:
    found = _patches(2000, _settings(darker=share))
    assert (found.sign < 0).float().mean().item() == pytest.approx(share, abs=0.035)


def test_every_outline_is_as_likely() -> None:
    counts = torch.bincount(_patches(3000, _settings()).shape, minlength=len(SHAPES))
    assert counts.tolist() == pytest.approx([1000] * 3, abs=100)


def test_a_soft_rim_falls_within_the_mask_alone() -> None:
    mask = torch.zeros(1, 1, 9, 9)
    mask[..., 2:7, 2:7] = 1
    weight = soft_rim(mask, 1)[0, 0]
    assert weight[4, 4] == 1
    assert weight[2, 4].item() == pytest.approx(6 / 9)
    assert weight[2, 2].item() == pytest.approx(4 / 9)
    assert weight[1, 4] == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"probability": 1.2}, "probability"),
        ({"probability": -0.1}, "probability"),
        ({"severity_max": 0}, "severity_max"),
        ({"patch_width_range": (80, 20)}, "rising"),
        ({"patch_width_range": (0, 20)}, "from 1"),
        ({"patch_ratio_range": {"landscape": (4, 2)}}, "patch_ratio_range.landscape.*rising"),
        ({"patch_ratio_range": {"portrait": (0, 0.5)}}, "above 0"),
        ({"patch_ratio_range": {"landscape": None, "portrait": None, "square": None}}, "must keep"),
        ({"patch_count": (3, 1)}, "patch_count"),
        ({"patch_count": (0, 1)}, "patch_count"),
        ({"patch_shapes": ()}, "patch_shapes"),
        ({"patch_shapes": ("star",)}, "patch_shapes"),
        ({"patch_shapes": ("ellipse", "ellipse")}, "at most once"),
        ({"values": (1, 0)}, "values"),
        ({"weakest": 0}, "weakest"),
        ({"kind": "dtd"}, "kind"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(MedadError, match=said) as caught:
        validated(FaultSettings, changes, "settings of model draem")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({"patch_width_range": (20, 80)}, (128, 64)),
        ({"patch_width_range": (20, 60)}, (64, 64)),  # the lowest portrait is 20 wide and 80 high
    ],
)
def test_patches_larger_than_the_image_are_refused(changes: dict[str, Any], size: tuple[int, int]) -> None:
    with pytest.raises(MedadError, match="larger than the image"):
        check_patches(_settings(**changes), size)


@given(st.floats(0, 0.49), st.integers(0, 2**31), st.sampled_from([(20.0, 40.0), (1.0, 3.0), (40.0, 64.0)]))
def test_a_patch_beyond_the_border_is_never_gone(overhang: float, seed: int, widths: tuple[float, float]) -> None:
    size = (64, 64)
    settings = FaultSettings(patch_width_range=widths, overhang=overhang, rotate_degrees=30)
    patches = draw_patches(size, settings, _draws(16, seed))
    for near, length, side in ((patches.top, patches.height, 64), (patches.left, patches.width, 64)):
        assert (near >= -overhang * length[:, None]).all()
        assert (near + length[:, None] <= side + overhang * length[:, None]).all()
    _, mask = cut_paste(_images(16, size), _images(16, size), patches, torch.ones(16), settings)
    assert (mask.flatten(1).sum(dim=1) > 0).all()


def test_foreign_patches_come_from_another_image() -> None:
    settings = FaultSettings(patch_width_range=(20, 40), foreign=1.0, contrast=0.0, softness=0)
    patches = draw_patches((64, 64), settings, _draws(6, 0))
    assert (patches.donor != torch.arange(6)).all()
    x = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 1, 64, 64) / 10
    made, mask = cut_paste(x, x[patches.donor], patches, torch.ones(6), settings)
    assert torch.equal(made, torch.where(mask > 0, x[patches.donor], x))
    own = draw_patches((64, 64), FaultSettings(patch_width_range=(20, 40)), _draws(6, 0))
    assert own.donor.tolist() == list(range(6))


def test_a_feathered_patch_fades_in_from_its_rim_to_the_share_that_was_drawn() -> None:
    settings = _settings(patch_shapes=("ellipse",), patch_count=(1, 1), feather=1.0, values=(-9.0, 9.0), contrast=0.1)
    sharp = settings.model_copy(update={"feather": 0.0})
    patches, x = _patches(20, settings), torch.zeros(20, 1, *SIZE)
    made, mask = cut_paste(x, x, patches, torch.ones(20), settings)
    whole, same = cut_paste(x, x, patches._replace(feather=torch.zeros(20)), torch.ones(20), sharp)
    assert torch.equal(mask, same)
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    for i in range(20):
        height, width = float(patches.height[i]), float(patches.width[i])
        down = (rows - float(patches.top[i, 0]) - height / 2) / (height / 2)
        across = (columns - float(patches.left[i, 0]) - width / 2) / (width / 2)
        expected = np.clip((1 - np.hypot(down, across)) / float(patches.feather[i]), 0, 1)
        off_centre = (np.abs(down * height / 2) > 0.5) | (np.abs(across * width / 2) > 0.5)
        share = (made[i, 0] / (0.1 * 18 * patches.sign[i])).numpy()
        assert np.abs(share - expected)[off_centre].max() < 1e-5
    assert whole.abs().sum() > made.abs().sum()
