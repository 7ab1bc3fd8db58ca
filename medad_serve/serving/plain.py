"""Which sources need no codec: they are decoded in the worker itself, with numpy alone.

Of a CT slice in JPEG-LS the process costs 0.2 to 0.4 of the decoding, of an uncompressed one more than the decoding
itself, of a ZIP of 28 of them 0.4; so these stay.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from medad_serve.errors import InputError
from medad_serve.io import Limits
from medad_serve.io.members import ZIP, read_members

MOST_BYTES = 32 * 2**20
"""Of a file: reading one takes a few tens of milliseconds then."""
MOST_SERIES = 64 * 2**20
"""Of the files of a series together."""
MOST_HEADER = 64 * 2**10
"""Bytes beside the pixels, and with them the elements that are parsed."""
_EXPLICIT, _IMPLICIT = b"1.2.840.10008.1.2.1", b"1.2.840.10008.1.2"
_LONG = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
_SHORT = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
_SYNTAX, _PIXELS = 0x0010_0002, 0x0010_7FE0
"""Tags as they lie in the file: the group in the lower half."""
_EXPLICIT_HEAD, _LENGTH = struct.Struct("<I2sH").unpack_from, struct.Struct("<I").unpack_from
_UNDEFINED = 0xFFFFFFFF


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
    for tag, start, end in _elements(data, at, syntax == _EXPLICIT):
        if end > len(data):
            return False
        if tag == _PIXELS:
            return len(data) - end + start <= MOST_HEADER
    return False


def plain_parts(parts: tuple[bytes, ...]) -> bool:
    """Whether files sent together are all plain."""
    return sum(map(len, parts)) <= MOST_SERIES and all(map(is_plain, parts))


def plain_members(source: bytes, limits: Limits) -> tuple[bytes, ...]:
    """Return the files of a ZIP of several where all are plain, () otherwise; what it inflates to is bounded."""
    if not source.startswith(ZIP) or len(source) > MOST_SERIES:
        return ()
    head = _first_member(source)
    if head[128:132] != b"DICM" or _meta(head)[1] not in (_EXPLICIT, _IMPLICIT):
        return ()
    try:
        most = min(MOST_SERIES, limits.max_bytes)
        members = tuple(read_members(source, limits.model_copy(update={"max_bytes": most})))
    except InputError:  # told by the decoder process
        return ()
    return members if len(members) > 1 and plain_parts(members) else ()


def _first_member(source: bytes) -> bytes:
    """Return the first bytes of what follows the first local header (APPNOTE 4.3.7)."""
    try:
        method, names, extras = struct.unpack_from("<8xH16xHH", source)
        start = 30 + int(names) + int(extras)
        if method == 0:
            return source[start : start + 4096]
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(source[start : start + 4096], 4096)
    except (struct.error, zlib.error):
        return b""


def _meta(data: bytes) -> tuple[int, bytes]:
    """Return where the file meta information (PS3.10 7.1) ends, and the transfer syntax that it names."""
    at, syntax = 132, b""
    for tag, start, end in _elements(data, at, True):
        if tag & 0xFFFF != 0x0002:
            break
        if tag == _SYNTAX:
            syntax = data[start:end].rstrip(b"\0 ")
        at = end
    ends_within = data[at : at + 2] == b"\x02\0"
    return at, b"" if ends_within else syntax


def _elements(data: bytes, at: int, explicit: bool) -> Iterator[tuple[int, int, int]]:
    """Yield the elements of a header from ``at`` on: tag, and where the value starts and ends.

    Ends before one of undefined length or unknown VR, and where the header would be longer than ``MOST_HEADER``.
    """
    last = min(len(data) - 12, MOST_HEADER)
    while at <= last:
        tag, vr, length = _EXPLICIT_HEAD(data, at)
        start = at + 8
        if not explicit:
            (length,) = _LENGTH(data, at + 4)
        elif vr in _LONG:
            (length,) = _LENGTH(data, start)
            start += 4
        elif vr not in _SHORT:
            return
        if length == _UNDEFINED:
            return
        at = start + length
        yield tag, start, at
