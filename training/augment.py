"""Random variants of training items, 2D and 3D, on the device where they lie."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from medad_serve.models import Batch
from medad_serve.spec import Frozen

Bytes = NDArray[np.uint8]
CLAHE_CLIP, CLAHE_TILES = 2.0, 8
"""Of the contrast-limited histogram equalisation; the second is a side of OpenCV's grid."""
SHARP = 1e-3
"""Blur below which a Gaussian is one pixel."""


class AugmentSettings(Frozen):
    """Largest change of each kind; 0 leaves it out, and all are 0 unless set."""

    probability: float = Field(0.5, ge=0, le=1)
    """With which each kind but flip, CLAHE and JPEG changes an item."""
    clahe: float = Field(0.0, ge=0, le=1)
    """Probability of contrast-limited adaptive histogram equalisation (clip limit 2, 8 x 8 tiles), of frames."""
    flip: float = Field(0.0, ge=0, le=1)
    """Probability of a left-right flip (the last axis)."""
    rotate_degrees: float = Field(0.0, ge=0, le=180)
    """Either way, within the plane of rows and columns: about the long axis of a body in axial volumes."""
    translate: float = Field(0.0, ge=0, lt=1)
    """Either way along rows and columns, as a share of the item's height and width."""
    scale: float = Field(0.0, ge=0, lt=1)
    """Zoom by 1 +- this, the same along every axis: a fracture is known by its proportions."""
    aspect: float = Field(0.0, ge=0, lt=1)
    """Stretch width against height by e to +- this, for films that were squeezed to a square before they came."""
    crop: float = Field(0.0, ge=0, lt=1)
    """Cut a window anywhere in the item, up to this share of each side shorter, and enlarge it to the item's size."""
    blur_sigma: float = Field(0.0, ge=0)
    """Gaussian blur, in pixels of the item."""
    gamma: float = Field(0.0, ge=0)
    """Power law on the scale 0..1 with an exponent of e to +- this."""
    noise_std: float = Field(0.0, ge=0)
    """Gaussian noise, as a share of the value range."""
    brightness: float = Field(0.0, ge=0, le=1)
    """Shift either way, as a share of the value range."""
    contrast: float = Field(0.0, ge=0, lt=1)
    """Stretch about the item's mean by 1 +- this."""
    jpeg: float = Field(0.0, ge=0, le=1)
    """Probability of a passage through JPEG, of frames."""
    jpeg_quality: int = Field(40, ge=1, le=95)
    """Lowest quality of that; the highest is 95."""

    @property
    def moves(self) -> bool:
        """Whether items are resampled."""
        return max(self.rotate_degrees, self.translate, self.scale, self.aspect, self.crop) > 0

    @property
    def shades(self) -> bool:
        """Whether values change where they are."""
        return max(self.blur_sigma, self.gamma, self.contrast, self.brightness, self.noise_std) > 0

    @property
    def of_frames(self) -> bool:
        """Whether something is asked for that only frames can undergo, not volumes."""
        return max(self.clahe, self.jpeg) > 0


def _affine(size: tuple[int, ...], degrees: Tensor, shift: Tensor, zoom: Tensor) -> Tensor:
    """Return ``(N, axes, axes + 1)`` for ``affine_grid``: where each output place is read from.

    An item turns by ``degrees (N,)`` from rows towards columns about its middle, grows by ``zoom (N,)``, or by
    ``(N, axes)`` along each, then moves by ``shift (N, 2)`` shares of its height and width.
    """
    axes = len(size)
    half = torch.tensor(size[::-1], dtype=torch.float64) / 2  # affine_grid names axes from the last to the first
    angle = torch.deg2rad(degrees.double())
    theta = torch.eye(axes, dtype=torch.float64).repeat(len(angle), 1, 1)
    theta[:, 0, 0] = theta[:, 1, 1] = torch.cos(angle)
    theta[:, 0, 1], theta[:, 1, 0] = -torch.sin(angle), torch.sin(angle)
    grown = zoom.double().flip(-1)[:, None] if zoom.ndim == 2 else zoom.double()[:, None, None]
    theta = theta / grown * half / half[:, None]
    moved = torch.zeros(len(angle), axes, 1, dtype=torch.float64)
    moved[:, :2, 0] = 2 * shift.double().flip(1)
    return torch.cat([theta, -theta @ moved], dim=2).float()


def resample(x: Tensor, degrees: Tensor, shift: Tensor, zoom: Tensor) -> Tensor:
    """Turn, zoom and shift items ``(N, C, *S)``, linear between voxels; beyond the border its values go on."""
    theta = _affine(tuple(x.shape[2:]), degrees, shift, zoom).to(x.device)
    if x.ndim == 5:  # the depth stands alone: it is stretched first, then each slice is turned like a channel
        planes = _stretched(x, theta[:, 2, 2]).flatten(1, 2)
        return _sampled(planes, theta[:, :2, [0, 1, 3]]).view(x.shape)
    return _sampled(x, theta)


def _sampled(x: Tensor, theta: Tensor) -> Tensor:
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid.to(x.dtype), mode="bilinear", padding_mode="border", align_corners=False)


def _stretched(x: Tensor, step: Tensor) -> Tensor:
    """Read volumes ``(N, C, D, H, W)`` along the depth in steps of ``step (N,)`` about the middle, linear between."""
    depth = x.shape[2]
    middle = (depth - 1) / 2
    place = ((torch.arange(depth, device=x.device) - middle) * step[:, None] + middle).clamp(0, depth - 1)
    below = place.floor().long().clamp(max=max(depth - 2, 0))
    above, share = (below + 1).clamp(max=depth - 1), (place - below).to(x.dtype)
    parts = (
        torch.lerp(volume[:, low], volume[:, high], part[:, None, None])
        for volume, low, high, part in zip(x, below, above, share, strict=True)
    )
    return torch.stack(list(parts))


def blurred(x: Tensor, sigma: Tensor) -> Tensor:
    """Blur items ``(N, C, *S)`` by Gaussians of ``sigma (N,)`` pixels; beyond the border there is nothing to weigh."""
    for axis in range(2, x.ndim):
        place = torch.arange(x.shape[axis], dtype=torch.float32, device=x.device)
        distance = (place[:, None] - place[None]) / sigma.to(place).clamp_min(SHARP)[:, None, None]
        weight = torch.exp(-0.5 * distance**2)
        weight = (weight / weight.sum(dim=2, keepdim=True)).to(x.dtype)
        x = torch.einsum("nij,nc...j->nc...i", weight, x.movedim(axis, -1)).movedim(-1, axis)
    return x


def equalized(frame: Bytes) -> Bytes:
    """Equalise a frame ``(H, W)`` by OpenCV's CLAHE."""
    clahe = cv2.createCLAHE(clipLimit=CLAHE_CLIP, tileGridSize=(CLAHE_TILES, CLAHE_TILES))
    return np.asarray(clahe.apply(frame), np.uint8)


def compressed(frame: Bytes, quality: int) -> Bytes:
    """Return a frame ``(H, W)`` as JPEG of a quality 1..95 gives it back."""
    _, data = cv2.imencode(".jpg", frame, (cv2.IMWRITE_JPEG_QUALITY, quality))
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE), np.uint8)


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
        """Return a variant of each item ``(N, C, *S)``; raises ValueError where volumes are to undergo CLAHE."""
        settings = self.settings
        if settings.of_frames and x.ndim != 4:
            raise ValueError("clahe and jpeg are for frames (N, C, H, W)")
        if settings.clahe:
            x = self._as_bytes(x, settings.clahe, equalized)
        if settings.flip:
            flips = self._chance(x, settings.flip)
            x = torch.where(flips, x.flip(-1), x)
        if settings.moves:
            x = self._moved(x)
        if settings.shades:
            x = self._shaded(x)
        if settings.jpeg:
            x = self._as_bytes(x, settings.jpeg, self._compressed)
        return x

    def _shaded(self, x: Tensor) -> Tensor:
        settings, span = self.settings, self.high - self.low
        if settings.blur_sigma:
            sigma = torch.rand(len(x), generator=self._generator) * settings.blur_sigma
            x = self._some(x, lambda part, chosen: blurred(part, sigma[chosen]))
        if settings.gamma:
            exponent = self._each(x, settings.gamma).exp()
            x = self.low + span * ((x - self.low) / span).clamp(0, 1) ** exponent
        if settings.contrast:
            mean = x.mean(dim=tuple(range(1, x.ndim)), keepdim=True)
            x = mean + (x - mean) * (1 + self._each(x, settings.contrast))
        if settings.brightness:
            x = x + self._each(x, settings.brightness * span)
        if settings.noise_std:
            std = self._chance(x, settings.probability) * settings.noise_std * span
            x = x + std * self._noise(x)
        return x.clamp(self.low, self.high)

    def _some(self, x: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Change the items that are drawn: ``change`` is given them, and which they are as a mask ``(N,)``."""
        chosen = self._chance(x, self.settings.probability).flatten().cpu()
        if not chosen.any():
            return x
        out = x.clone()
        out[chosen.to(x.device)] = change(x[chosen.to(x.device)], chosen)
        return out

    def _as_bytes(self, x: Tensor, probability: float, change: Callable[[Bytes], Bytes]) -> Tensor:
        """Change some frames on the scale 0..255, as OpenCV does it; each channel by itself."""
        chosen = self._chance(x, probability).flatten()
        if not chosen.any():
            return x
        span = self.high - self.low
        frames = ((x[chosen] - self.low) / span * 255).round().clamp(0, 255).byte().cpu().numpy()
        for frame in frames.reshape(-1, *x.shape[2:]):
            frame[:] = change(frame)
        out = x.clone()
        out[chosen] = self.low + span / 255 * torch.from_numpy(frames).to(x)
        return out

    def _compressed(self, frame: Bytes) -> Bytes:
        quality = torch.randint(self.settings.jpeg_quality, 96, (), generator=self._generator)
        return compressed(frame, int(quality))

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
        if settings.crop:
            side = 1 - torch.rand(len(x), generator=self._generator) * settings.crop
            # The middle of the window lies up to half of what is cut off beside that of the item.
            shift = shift + self._uniform(len(x), 2) * ((1 - side) / 2 / side)[:, None]
            zoom = zoom / side
        if settings.aspect:
            stretch = (self._uniform(len(x)) * settings.aspect / 2).exp()
            zoom = zoom[:, None].repeat(1, x.ndim - 2)
            zoom[:, -2] /= stretch
            zoom[:, -1] *= stretch
        return self._some(x, lambda part, chosen: resample(part, degrees[chosen], shift[chosen], zoom[chosen]))

    def _noise(self, x: Tensor) -> Tensor:
        """Draw standard normal noise on the device of ``x``: handing it over would cost more than drawing."""
        seed = int(torch.randint(2**62, (), generator=self._generator))
        return torch.randn(x.shape, generator=torch.Generator(x.device).manual_seed(seed), device=x.device)
