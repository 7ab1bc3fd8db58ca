"""Normals become faulty: which of them, how badly, and by which generator."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from medad_serve.models.draem.cracks import crack, draw_cracks
from medad_serve.models.draem.cut_paste import check_patches, cut_paste, draw_patches
from medad_serve.models.draem.draws import Draws
from medad_serve.models.draem.perlin import draw_regions, perlin
from medad_serve.models.draem.settings import FaultSettings


class SyntheticFaults(NamedTuple):
    """A batch in which some images have a fault."""

    synthetic_image: Tensor
    """``(N, C, H, W)``."""
    fault_mask: Tensor
    """``(N, 1, H, W)``, 1 where an image was changed."""
    severity_map: Tensor
    """``(N, 1, H, W)``, the severity where it was changed."""
    severity_label: Tensor
    """``(N,)``, 0 without fault."""


class FaultGenerator:
    """Makes faults for images of ``size`` (H, W), all of a batch at once and on its device.

    An image gets a fault with ``probability``, of a severity between ``weakest * severity_max`` and
    ``severity_max``, each as likely; it changes what it covers in proportion to its severity. Raises MedadError
    where patches are larger than the image.
    """

    def __init__(self, settings: FaultSettings, size: tuple[int, int]) -> None:
        if settings.kind != "perlin":
            check_patches(settings, size)
        self.settings, self.size = settings, size

    @torch.no_grad()
    def __call__(self, x: Tensor, draws: Draws, probability: float | None = None) -> SyntheticFaults:
        """Give images ``x (N, C, H, W)`` their faults; ``probability`` stands in for that of the settings."""
        settings = self.settings
        chosen = draws.chance(settings.probability if probability is None else probability)
        strength = draws.between(settings.weakest, 1.0)
        by_patch = draws.chance({"cut_paste": 1.0, "perlin": 0.0, "mixed": 0.5}[settings.kind])
        image, mask = x.clone(), torch.zeros_like(x[:, :1])
        cracked = torch.zeros_like(chosen)
        if settings.cracks:
            lines, cracked = draw_cracks(settings, draws), chosen & draws.chance(settings.cracks)
            if cracked.any():
                at, found_lines = cracked.to(x.device), lines.of(cracked, x.device)
                image[at], mask[at] = crack(x[at], found_lines, strength[cracked].to(x), settings)
        if settings.kind != "perlin":
            patches, which = draw_patches(self.size, settings, draws), chosen & by_patch & ~cracked
            if which.any():
                at, chosen_patches = which.to(x.device), patches.of(which, x.device)
                donors = x[chosen_patches.donor]
                image[at], mask[at] = cut_paste(x[at], donors, chosen_patches, strength[which].to(x), settings)
        if settings.kind != "cut_paste":
            regions, which = draw_regions(draws), chosen & ~by_patch & ~cracked
            if which.any():
                at, found = which.to(x.device), regions.of(which, x.device)
                image[at], mask[at] = perlin(x[at], x[found.donor], found, strength[which].to(x), settings)
        label = (strength * chosen * settings.severity_max).to(x)
        return SyntheticFaults(image, mask, mask * label[:, None, None, None], label)
