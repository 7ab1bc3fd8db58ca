"""Cut-paste faults: patches of an image reappear elsewhere in it, the more altered the more severe.

After Li et al., "CutPaste" (CVPR 2021), with a severity and with outlines beyond rectangles.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from medad_serve.errors import MedadError
from medad_serve.models.draem.draws import Draws
from medad_serve.models.draem.settings import FaultSettings, PatchShape
from medad_serve.models.smoothing import box_mean

SHAPES: tuple[PatchShape, ...] = ("rectangle", "ellipse", "irregular")
HARMONICS = 5
"""Highest frequency, in turns, of an irregular outline."""
WOBBLE = (0.4, 1.0)
"""Nearest and farthest point of an irregular outline from its middle, as a share of the ellipse around it."""


class Patches(NamedTuple):
    """Where and how the patches of ``N`` images are made; ``K`` is the most that one image has."""

    height: Tensor
    """``(N,)`` pixels, as ``width``."""
    width: Tensor
    top: Tensor
    """``(N, K)``, as ``left``: where each patch comes to lie."""
    left: Tensor
    source_top: Tensor
    """``(N, K)``, as ``source_left``: where each is cut."""
    source_left: Tensor
    made: Tensor
    """``(N,)``, how many of the ``K`` are made."""
    shape: Tensor
    """``(N,)``, index into ``SHAPES``."""
    angle: Tensor
    """``(N, K)`` radians."""
    harmonics: Tensor
    """``(N, 2, HARMONICS - 1)``: amplitude and phase of an irregular outline."""
    sign: Tensor
    """``(N,)``: -1 darkens, 1 brightens."""
    donor: Tensor
    """``(N,)``: which image of the batch is cut from."""
    feather: Tensor
    """``(N,)``: share of the way from the rim to the middle over which the patches fade in."""

    def of(self, chosen: Tensor, device: torch.device) -> Patches:
        """Return those of some images, on a device."""
        return Patches(*(part[chosen].to(device) for part in self))


def check_patches(settings: FaultSettings, size: tuple[int, int]) -> None:
    """Raise MedadError where patches are larger than an image of ``size`` (H, W)."""
    height, width = size
    narrowest, widest = settings.patch_width_range
    tallest = max(narrowest / low for low, _ in settings.patch_ratio_range.forms)
    if widest > width:
        raise MedadError(
            f"patches {widest:g} pixels wide are larger than the image ({height}x{width})",
            "Lower settings.faults.patch_width_range",
        )
    if tallest > height:
        raise MedadError(
            f"patches {narrowest:g} pixels wide of the lowest ratio would be {tallest:g} high, larger than the image "
            f"({height}x{width})",
            "Lower settings.faults.patch_width_range or raise patch_ratio_range",
        )


def draw_patches(size: tuple[int, int], settings: FaultSettings, draws: Draws) -> Patches:
    """Draw patches for every image; those too high for it are made as narrow as their ratio asks."""
    height, width = size
    forms = torch.tensor(settings.patch_ratio_range.forms)[draws.whole(0, len(settings.patch_ratio_range.forms) - 1)]
    ratio = _scale_free(forms[:, 0], forms[:, 1], draws.uniform())
    low, high = settings.patch_width_range
    limit = torch.minimum(torch.tensor(high), ratio * height)
    wide = _scale_free(torch.tensor(low), limit, draws.uniform())
    tall = (wide / ratio).round().long().clamp(1, height)
    wide = wide.round().long().clamp(1, width)
    most = settings.patch_count[1]
    top, source_top = _places(height - tall, tall * settings.overhang, most, draws)
    left, source_left = _places(width - wide, wide * settings.overhang, most, draws)
    shapes = torch.tensor([SHAPES.index(name) for name in settings.patch_shapes])
    turn = math.radians(settings.rotate_degrees)
    return Patches(
        height=tall,
        width=wide,
        top=top,
        left=left,
        source_top=source_top,
        source_left=source_left,
        made=draws.whole(*settings.patch_count),
        shape=shapes[draws.whole(0, len(shapes) - 1)],
        angle=draws.between(-turn, turn, most),
        harmonics=_harmonics(draws),
        sign=1 - 2 * draws.chance(settings.darker).float(),
        donor=_donors(settings.foreign, draws),
        feather=draws.between(0, settings.feather) if settings.feather else torch.zeros(draws.count),
    )


def _scale_free(low: Tensor, high: Tensor, share: Tensor) -> Tensor:
    """Return what lies at a share of the way from low to high, in factors: every doubling is as likely."""
    return low * (high / low) ** share


def _places(free: Tensor, beyond: Tensor, count: int, draws: Draws) -> tuple[Tensor, Tensor]:
    """Return where ``count`` patches lie and where they are cut, a quarter of the free way apart or more.

    Along an axis patches have ``free (N,)`` pixels to move in, and may reach ``beyond (N,)`` out on either side.
    """
    places, beyond = free[:, None] + 1, beyond[:, None].long()
    target = draws.uniform(count) * places
    source = (target + draws.between(0.25, 0.75, count) * places) % places
    stretched = target * (places + 2 * beyond) / places
    return stretched.long().clamp(max=places - 1 + 2 * beyond) - beyond, source.long().clamp(max=places - 1)


def _donors(foreign: float, draws: Draws) -> Tensor:
    """Return for each image itself, or with ``foreign`` another one of the batch."""
    other = draws.others()
    return torch.where(draws.chance(foreign), other, torch.arange(draws.count))


def _harmonics(draws: Draws) -> Tensor:
    """Draw the terms of an irregular outline; amplitudes, falling with frequency, sum to the wobble's half."""
    orders = torch.arange(2, HARMONICS + 1)
    amplitude = draws.uniform(len(orders)) / orders
    reach = (WOBBLE[1] - WOBBLE[0]) / 2
    amplitude = reach * amplitude / amplitude.sum(dim=1, keepdim=True).clamp(min=1e-6)
    return torch.stack((amplitude, draws.between(0, 2 * math.pi, len(orders))), dim=1)


def _outline(patches: Patches, index: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return the pixels ``(M, 1, H, W)`` bool of the ``index``-th patch of every image, never none, and their weight.

    The weight, 0..1, rises from the rim inwards as the patch fades in; in the middle it is 1.
    """
    device = patches.height.device
    tall, wide = patches.height[:, None, None], patches.width[:, None, None]
    row = torch.arange(size[0], device=device)[:, None] + 0.5 - patches.top[:, index, None, None] - tall / 2
    column = torch.arange(size[1], device=device) + 0.5 - patches.left[:, index, None, None] - wide / 2
    cosine, sine = (f(patches.angle[:, index, None, None]) for f in (torch.cos, torch.sin))
    across, down = (column * cosine + row * sine) / (wide / 2), (row * cosine - column * sine) / (tall / 2)
    shape = patches.shape[:, None, None]
    radius = torch.where(
        shape == SHAPES.index("rectangle"), torch.maximum(across.abs(), down.abs()), torch.hypot(across, down)
    )
    limit = torch.ones_like(radius)
    irregular = patches.shape == SHAPES.index("irregular")
    if irregular.any():
        limit[irregular] = _wobbled(torch.atan2(down[irregular], across[irregular]), patches.harmonics[irregular])
    middle = (row.abs() <= 0.5) & (column.abs() <= 0.5)
    feather = patches.feather[:, None, None].clamp(min=1e-6)
    weight = torch.where(middle, 1.0, ((1 - radius / limit) / feather).clamp(0, 1))
    return ((radius <= limit) | middle)[:, None], torch.where(feather > 1e-6, weight, 1.0)[:, None]


def _wobbled(angle: Tensor, harmonics: Tensor) -> Tensor:
    """Return how far an irregular outline reaches in each direction ``angle (M, H, W)``."""
    limit = torch.full_like(angle, sum(WOBBLE) / 2)
    for place, order in enumerate(range(2, HARMONICS + 1)):
        amplitude, phase = (harmonics[:, part, place, None, None] for part in (0, 1))
        limit += amplitude * torch.cos(order * angle + phase)
    return limit


def _shifted(x: Tensor, patches: Patches, index: int) -> Tensor:
    """Return images ``(M, C, H, W)`` moved so that what was cut lies where it is pasted."""
    height, width = x.shape[2:]
    down = patches.source_top[:, index] - patches.top[:, index]
    across = patches.source_left[:, index] - patches.left[:, index]
    rows = (torch.arange(height, device=x.device) + down[:, None]).clamp(0, height - 1)
    columns = (torch.arange(width, device=x.device) + across[:, None]).clamp(0, width - 1)
    item = torch.arange(len(x), device=x.device)[:, None, None, None]
    channel = torch.arange(x.shape[1], device=x.device)[:, None, None]
    return x[item, channel, rows[:, None, :, None], columns[:, None, None, :]]


def cut_paste(
    x: Tensor, donors: Tensor, patches: Patches, strength: Tensor, settings: FaultSettings
) -> tuple[Tensor, Tensor]:
    """Return images ``(M, C, H, W)`` with patches of ``donors``, and the mask ``(M, 1, H, W)`` of what was changed.

    A pixel of a patch becomes ``x + strength * (pasted - x + sign * contrast)``: with ``strength (M,)`` in 0..1
    it departs from what was there in proportion, up to a whole pasted patch of another brightness.
    """
    height, width = x.shape[2:]
    pasted, mask, faded = x, torch.zeros_like(x[:, :1], dtype=torch.bool), torch.zeros_like(x[:, :1])
    for index in range(patches.top.shape[1]):
        exists = (patches.made > index)[:, None, None, None]
        inside, weight = _outline(patches, index, (height, width))
        inside &= exists
        faded = torch.where(inside, torch.maximum(faded, weight), faded)
        pasted = torch.where(inside, _shifted(donors, patches, index), pasted)
        mask |= inside
    low, high = settings.values
    shift = patches.sign * settings.contrast * (high - low)
    weight = soft_rim(mask.to(x.dtype), settings.softness) * faded * strength[:, None, None, None]
    return (x + weight * (pasted - x + shift[:, None, None, None])).clamp(low, high), mask.to(x.dtype)


def soft_rim(mask: Tensor, softness: int) -> Tensor:
    """Lower a mask ``(N, 1, H, W)`` of 0 and 1 towards its rim, over some pixels within it."""
    if not softness:
        return mask
    return box_mean(mask, 2 * softness + 1, padded=False) * mask
