"""Random variants of training items, 2D and 3D, on the device where they lie."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from medad_serve.models import Batch
from medad_serve.spec import Frozen


class AugmentSettings(Frozen):
    """Largest change of each kind; 0 leaves it out, and all are 0 unless set."""

    probability: float = Field(0.5, ge=0, le=1)
    """With which each kind but the flip changes an item."""
    flip: float = Field(0.0, ge=0, le=1)
    """Probability of a left-right flip (the last axis)."""
    rotate_degrees: float = Field(0.0, ge=0, le=180)
    """Either way, within the plane of rows and columns: about the long axis of a body in axial volumes."""
    translate: float = Field(0.0, ge=0, lt=1)
    """Either way along rows and columns, as a share of the item's height and width."""
    scale: float = Field(0.0, ge=0, lt=1)
    """Zoom by 1 +- this, the same along every axis: a fracture is known by its proportions."""
    noise_std: float = Field(0.0, ge=0)
    """Gaussian noise, as a share of the value range."""
    brightness: float = Field(0.0, ge=0, le=1)
    """Shift either way, as a share of the value range."""
    contrast: float = Field(0.0, ge=0, lt=1)
    """Stretch about the item's mean by 1 +- this."""

    @property
    def moves(self) -> bool:
        """Whether items are resampled."""
        return max(self.rotate_degrees, self.translate, self.scale) > 0


def _affine(size: tuple[int, ...], degrees: Tensor, shift: Tensor, zoom: Tensor) -> Tensor:
    """Return ``(N, axes, axes + 1)`` for ``affine_grid``: where each output place is read from.

    An item turns by ``degrees (N,)`` from rows towards columns about its middle, grows by ``zoom (N,)``, then
    moves by ``shift (N, 2)`` shares of its height and width.
    """
    axes = len(size)
    half = torch.tensor(size[::-1], dtype=torch.float64) / 2  # affine_grid names axes from the last to the first
    angle = torch.deg2rad(degrees.double())
    theta = torch.eye(axes, dtype=torch.float64).repeat(len(angle), 1, 1)
    theta[:, 0, 0] = theta[:, 1, 1] = torch.cos(angle)
    theta[:, 0, 1], theta[:, 1, 0] = -torch.sin(angle), torch.sin(angle)
    theta = theta / zoom.double()[:, None, None] * half / half[:, None]
    moved = torch.zeros(len(angle), axes, 1, dtype=torch.float64)
    moved[:, :2, 0] = 2 * shift.double().flip(1)
    return torch.cat([theta, -theta @ moved], dim=2).float()


def resample(x: Tensor, degrees: Tensor, shift: Tensor, zoom: Tensor) -> Tensor:
    """Turn, zoom and shift items ``(N, C, *S)``, linear between voxels; beyond the border its values go on."""
    theta = _affine(tuple(x.shape[2:]), degrees, shift, zoom).to(x.device)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid.to(x.dtype), mode="bilinear", padding_mode="border", align_corners=False)


class Augment:
    """Draws a variant of every item of a batch; the same seed draws the same.

    Values stay within ``values`` (of black and white). Spatial changes are one interpolation, batched on the device;
    MONAI's RandAffine draws another zoom along each axis.
    """

    def __init__(self, settings: AugmentSettings, seed: int, values: tuple[float, float] = (0.0, 1.0)) -> None:
        self.settings = settings
        self.low, self.high = values
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, batch: Batch) -> Batch:
        """Return the batch with other items ``x (N, C, *S)``; everything else stays."""
        return batch._replace(x=self.items(batch.x))

    def items(self, x: Tensor) -> Tensor:
        """Return a variant of each item ``(N, C, *S)``."""
        settings = self.settings
        if settings.flip:
            flips = self._chance(x, settings.flip)
            x = torch.where(flips, x.flip(-1), x)
        if settings.moves:
            x = self._moved(x)
        if not (settings.contrast or settings.brightness or settings.noise_std):
            return x
        if settings.contrast:
            mean = x.mean(dim=tuple(range(1, x.ndim)), keepdim=True)
            x = mean + (x - mean) * (1 + self._each(x, settings.contrast))
        span = self.high - self.low
        if settings.brightness:
            x = x + self._each(x, settings.brightness * span)
        if settings.noise_std:
            std = self._chance(x, settings.probability) * settings.noise_std * span
            x = x + std * self._noise(x)
        return x.clamp(self.low, self.high)

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self._generator) * 2 - 1

    def _chance(self, x: Tensor, probability: float) -> Tensor:
        """Return which items change, broadcast over ``x``."""
        drawn = torch.rand(len(x), generator=self._generator) < probability
        return drawn.to(x.device).view(-1, *[1] * (x.ndim - 1))

    def _each(self, x: Tensor, most: float) -> Tensor:
        """Return a value in +- ``most`` for each item that changes, else 0, broadcast over ``x``."""
        values = self._uniform(len(x)).to(x.device).view(-1, *[1] * (x.ndim - 1)) * most
        return values * self._chance(x, self.settings.probability)

    def _moved(self, x: Tensor) -> Tensor:
        settings = self.settings
        degrees = self._uniform(len(x)) * settings.rotate_degrees
        shift = self._uniform(len(x), 2) * settings.translate
        zoom = 1 + self._uniform(len(x)) * settings.scale
        chosen = self._chance(x, settings.probability).flatten().cpu()
        if not chosen.any():
            return x
        out = x.clone()
        out[chosen.to(x.device)] = resample(x[chosen.to(x.device)], degrees[chosen], shift[chosen], zoom[chosen])
        return out

    def _noise(self, x: Tensor) -> Tensor:
        """Draw standard normal noise on the device of ``x``: handing it over would cost more than drawing."""
        seed = int(torch.randint(2**62, (), generator=self._generator))
        return torch.randn(x.shape, generator=torch.Generator(x.device).manual_seed(seed), device=x.device)
