"""Bounds on what one request may cost, checked before anything is allocated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import PositiveInt

from medad_serve.errors import InputError
from medad_serve.spec import Frozen, validated

VARIABLE = "MEDAD_"
"""Begins the environment variable of a limit, e.g. ``MEDAD_MAX_BYTES``."""


class Limits(Frozen):
    """Upper bounds for one input."""

    max_bytes: PositiveInt = 512 * 2**20
    """Size of the input, and of whatever it inflates to."""
    max_pixels: PositiveInt = 64 * 2**20
    """Pixels of one frame."""
    max_values: PositiveInt = 512 * 2**20 // 4
    """Values over all frames and channels: 512 MiB as float32."""
    max_frames: PositiveInt = 4096
    max_members: PositiveInt = 4096
    """Files in one ZIP, parts of one request."""
    max_json_bytes: PositiveInt = 64 * 2**20
    """JSON of a prepared tensor: read, it takes up to ten times as much memory."""

    @classmethod
    def of(cls, settings: Mapping[str, Any] | None, environment: Mapping[str, str]) -> Limits:
        """Return the limits of a server: ``handler.limits`` of a model's configuration, over it the environment.

        Raises MedadError for a name that is none, or a value that is no positive whole number.
        """
        named = {name: environment[key] for name in cls.model_fields if (key := VARIABLE + name.upper()) in environment}
        return validated(cls, {**(settings or {}), **named}, "the limits of the server")


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
