"""Decoding: bytes or a path become rescaled ``Pixels``; every fault of the input is an ``InputError``."""

from medad_serve.io.decode import decode
from medad_serve.io.limits import DEFAULT_LIMITS, Limits
from medad_serve.io.lut import Lut
from medad_serve.io.pages import keep_freed_pages
from medad_serve.io.pixels import Facts, LeftOut, Pixels

__all__ = ["DEFAULT_LIMITS", "Facts", "LeftOut", "Limits", "Lut", "Pixels", "decode"]

keep_freed_pages()
