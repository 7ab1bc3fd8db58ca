"""Which files need no codec: they are decoded in the worker itself, with numpy alone."""

from __future__ import annotations

MOST_BYTES = 32 * 2**20
"""Of a file: reading one takes a few tens of milliseconds then."""
MOST_HEADER = 64 * 2**10
"""Bytes beside the pixels, and with them the elements that are parsed."""
_EXPLICIT, _IMPLICIT = b"1.2.840.10008.1.2.1", b"1.2.840.10008.1.2"
_LONG = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
_SHORT = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
_PIXELS = (0x7FE0, 0x0010)


def is_plain(data: bytes) -> bool:
    """Whether ``data`` is a DICOM file with uncompressed pixels, little-endian, that a strict walk over its elements
    finds whole: what reading it costs is then bounded by its size.

    Anything else, sequences of undefined length included, is False and left to the decoder process.
    """
    if not 144 < len(data) <= MOST_BYTES or data[128:132] != b"DICM":
        return False
    at, syntax = _meta(data)
    if syntax not in (_EXPLICIT, _IMPLICIT):
        return False
    explicit = syntax == _EXPLICIT
    while at + 12 <= len(data) and at <= MOST_HEADER:
        start, length = _element(data, at, explicit)
        end = start + length
        if length < 0 or end > len(data):
            return False
        if _tag(data, at) == _PIXELS:
            return len(data) - end + start <= MOST_HEADER
        at = end
    return False


def _meta(data: bytes) -> tuple[int, bytes]:
    """Return where the file meta information (PS3.10 7.1) ends, and the transfer syntax that it names."""
    at, syntax = 132, b""
    while at + 12 <= len(data) and at <= MOST_HEADER and data[at : at + 2] == b"\x02\0":
        start, length = _element(data, at, True)
        if length < 0:
            return at, b""
        if _tag(data, at) == (0x0002, 0x0010):
            syntax = data[start : start + length].rstrip(b"\0 ")
        at = start + length
    return at, syntax


def _tag(data: bytes, at: int) -> tuple[int, int]:
    return int.from_bytes(data[at : at + 2], "little"), int.from_bytes(data[at + 2 : at + 4], "little")


def _element(data: bytes, at: int, explicit: bool) -> tuple[int, int]:
    """Return where the value of an element starts and its length, -1 where that is undefined or the VR unknown."""
    if not explicit:
        start, length = at + 8, int.from_bytes(data[at + 4 : at + 8], "little")
    else:
        vr = data[at + 4 : at + 6]
        if vr in _SHORT:
            return at + 8, int.from_bytes(data[at + 6 : at + 8], "little")
        start, length = at + 12, int.from_bytes(data[at + 8 : at + 12], "little") if vr in _LONG else 0xFFFFFFFF
    return start, -1 if length == 0xFFFFFFFF else length
