"""Decoding that answers instead of raising: what a batch and a decoder process need."""

from __future__ import annotations

from pathlib import Path

from medad_serve.errors import InputError, place_of
from medad_serve.io.decode import decode
from medad_serve.io.limits import DEFAULT_LIMITS, Limits
from medad_serve.io.pixels import Pixels


def decoded(source: bytes | Path | tuple[bytes, ...], limits: Limits = DEFAULT_LIMITS) -> Pixels | InputError:
    """Decode one source; a fault of ours is an error of its own (500), so that neighbours keep their answers."""
    try:
        return decode(source, limits)
    except InputError as error:
        return error
    except MemoryError:
        return InputError(413, "the image does not fit into memory", "Send fewer or smaller frames")
    except Exception as error:  # whose message could quote the input
        fault = f"{type(error).__name__} at {place_of(error)}"
        return InputError(500, f"internal fault while reading ({fault})", "Report this file's format")
