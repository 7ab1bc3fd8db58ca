"""Reading a path within the limits."""

from __future__ import annotations

from pathlib import Path

from medad_serve.errors import InputError
from medad_serve.io.limits import Limits


def too_many_bytes(limits: Limits) -> InputError:
    """Return the error for an input over ``limits.max_bytes``."""
    return InputError(413, f"the input is larger than {limits.max_bytes} bytes", "Send a smaller file")


def read_path(path: Path, limits: Limits) -> bytes:
    """Read a file whose size is within the limits; errors leave the name out, which may be a patient's."""
    try:
        if path.stat().st_size > limits.max_bytes:
            raise too_many_bytes(limits)
        with path.open("rb") as file:
            return file.read(limits.max_bytes + 1)  # bounded also where stat tells no size, as of a pipe
    except OSError as error:
        reason = type(error).__name__
        raise InputError(400, f"the file cannot be read ({reason})", "Name a readable file") from None
