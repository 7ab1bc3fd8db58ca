"""What a compressed frame declares of itself, read before any decoder may allocate for it."""

from __future__ import annotations

import struct
from typing import NamedTuple

_START_OF_FRAME = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7}
_ALONE = {0x01, *range(0xD0, 0xD8)}
"""Markers without a segment."""


class FrameSize(NamedTuple):
    """Dimensions in a codestream's header."""

    rows: int
    columns: int
    components: int
    precision: int


def frame_size(frame: bytes) -> FrameSize | None:
    """Read the size from a JPEG, JPEG-LS, JPEG 2000 or HTJ2K header; None where there is no readable one.

    SOF: ITU-T T.81 B.2.2 and T.87 C.2.2; SIZ: T.800 A.5.1; JP2 boxes: T.800 annex I.
    """
    try:
        if frame[:2] == b"\xff\xd8":
            return _jpeg(frame)
        if frame[4:8] == b"jP  ":
            frame = frame[_codestream_offset(frame) :]
        if frame[:4] == b"\xff\x4f\xff\x51":
            return _jpeg2000(frame)
    except (struct.error, IndexError, ValueError):
        pass
    return None


def _jpeg(frame: bytes) -> FrameSize:
    at = 2
    while True:
        if frame[at] != 0xFF:
            raise ValueError("no marker")
        marker = frame[at + 1]
        if marker in _START_OF_FRAME:
            precision, rows, columns, components = struct.unpack_from(">BHHB", frame, at + 4)
            return FrameSize(rows, columns, components, precision)
        if marker == 0xFF or marker in _ALONE:
            at += 1 if marker == 0xFF else 2
            continue
        (length,) = struct.unpack_from(">H", frame, at + 2)
        at += 2 + max(length, 2)


def _jpeg2000(frame: bytes) -> FrameSize:
    x1, y1, x0, y0 = struct.unpack_from(">4I", frame, 8)
    (components,) = struct.unpack_from(">H", frame, 40)
    return FrameSize(y1 - y0, x1 - x0, components, (frame[42] & 0x7F) + 1)


def _codestream_offset(frame: bytes) -> int:
    at = 0
    while True:
        length, kind = struct.unpack_from(">I4s", frame, at)
        if kind == b"jp2c":
            return at + 8
        if length < 8:  # 0 and 1 mean "to the end" and "64 bit": pydicom's own walk would not end on them
            raise ValueError("box length")
        at += length
