"""Bounds on what one request may cost, checked before anything is allocated."""

from collections.abc import Sequence
from dataclasses import dataclass

from medad_serve.errors import InputError


@dataclass(frozen=True)
class Limits:
    """Upper bounds for one input."""

    max_bytes: int = 512 * 2**20
    """Size of the input, and of whatever it inflates to."""
    max_pixels: int = 64 * 2**20
    """Pixels of one frame."""
    max_values: int = 512 * 2**20 // 4
    """Values over all frames and channels: 512 MiB as float32."""
    max_frames: int = 4096
    max_members: int = 4096
    """Files in one ZIP."""


DEFAULT_LIMITS = Limits()


def check_shape(shape: Sequence[int], limits: Limits) -> None:
    """Check the declared (D, H, W) of a volume; raises InputError 400 where it is empty, 413 over the limits."""
    frames, rows, columns = shape
    if min(shape) < 1:
        raise InputError(400, "the volume is empty", "Send one with voxels")
    if rows * columns > limits.max_pixels:
        raise InputError(413, f"a slice has more than {limits.max_pixels} pixels", "Send smaller slices")
    if frames > limits.max_frames:
        raise InputError(413, f"the volume has more than {limits.max_frames} slices", "Send it in parts")
    if frames * rows * columns > limits.max_values:
        raise InputError(413, f"the volume has more than {limits.max_values} voxels", "Send it in parts")
