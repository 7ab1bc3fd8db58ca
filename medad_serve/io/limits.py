"""Bounds on what one request may cost, checked before anything is allocated."""

from dataclasses import dataclass


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
