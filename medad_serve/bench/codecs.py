"""Decoders of compressed frames side by side: that the one in use is the fastest that is right, measured."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import cv2
import imagecodecs
import numpy as np
from PIL import Image

from medad_serve.bench.encodings import SYNTAXES, Encoded, encoded_dicom
from medad_serve.bench.tables import Cell, Table
from medad_serve.bench.timing import in_turns

Decoder = Callable[[bytes], Any]
COLUMNS = ("encoding", "bits", "decoder", "in use", "ms", "x in use", "largest difference")
IN_USE = {
    "JPEG baseline": "imagecodecs.jpeg8",
    "JPEG extended": "imagecodecs.jpeg8",
    "JPEG lossless": "imagecodecs.jpeg8",
    "JPEG-LS": "imagecodecs.jpegls",
    "JPEG 2000": "imagecodecs.jpeg2k",
    "HTJ2K": "imagecodecs.jpeg2k",
}


def bench_codecs(size: int = 512, *, seconds: float = 0.2) -> Table:
    """Time every decoder that is installed on one frame of each compressed syntax, interleaved for each frame.

    The difference is that from the values before compression: 0 of a decoder that reads a lossless syntax rightly.
    """
    rows: list[tuple[Cell, ...]] = []
    for syntax in SYNTAXES:
        for bits in syntax.bits if syntax.encode else ():
            rows += _rows(encoded_dicom(syntax, size, bits), seconds)
    return Table("codecs", f"Decoders of one {size}x{size} frame, medians", COLUMNS, tuple(rows))


def _rows(encoded: Encoded, seconds: float) -> Iterator[tuple[Cell, ...]]:
    differences = {name: _difference(decode, encoded) for name, decode in _decoders(encoded.encoding)}
    able = {name: decode for name, decode in _decoders(encoded.encoding) if differences[name] is not None}
    timed = in_turns({name: _task(decode, encoded.frame) for name, decode in able.items()}, seconds)
    reference = timed[IN_USE[encoded.encoding]]
    for name, turns in timed.items():
        in_use = name == IN_USE[encoded.encoding]
        ratio = turns.ratio(reference)
        yield encoded.encoding, encoded.bits, name, in_use, turns.median, ratio, differences[name]


def _task(decode: Decoder, frame: bytes) -> Callable[[], Any]:
    return lambda: decode(frame)


def _difference(decode: Decoder, encoded: Encoded) -> int | None:
    """Return the largest difference from what was encoded, None where a decoder cannot read the frame."""
    try:
        found = np.asarray(decode(encoded.frame))
        return int(np.abs(found.astype(np.int64) - encoded.stored).max())
    except Exception:  # each library has errors of its own, and some return nothing
        return None


def _decoders(encoding: str) -> Iterator[tuple[str, Decoder]]:
    """Yield the decoders that may read an encoding; GPL ones are no candidates, they stand here as oracles."""
    if encoding.startswith(("JPEG b", "JPEG e", "JPEG l")):
        yield "imagecodecs.jpeg8", imagecodecs.jpeg8_decode
        if encoding == "JPEG lossless":
            yield "imagecodecs.ljpeg", imagecodecs.ljpeg_decode
            yield "imagecodecs.jpegsof3", imagecodecs.jpegsof3_decode
    elif encoding == "JPEG-LS":
        yield "imagecodecs.jpegls", imagecodecs.jpegls_decode
        if find_spec("jpeg_ls"):
            decode = import_module("jpeg_ls").decode
            yield "pyjpegls", lambda frame: decode(np.frombuffer(frame, np.uint8))
    else:
        yield "imagecodecs.jpeg2k", imagecodecs.jpeg2k_decode
        if encoding == "HTJ2K":
            yield "imagecodecs.htj2k", imagecodecs.htj2k_decode
        if find_spec("openjpeg"):
            yield "pylibjpeg-openjpeg", import_module("openjpeg").decode
    if encoding.startswith("JPEG ") and encoding != "JPEG 2000" and find_spec("libjpeg"):
        yield "pylibjpeg-libjpeg (GPL)", import_module("libjpeg").decode
    yield "OpenCV", lambda frame: cv2.imdecode(np.frombuffer(frame, np.uint8), cv2.IMREAD_UNCHANGED)
    yield "Pillow", lambda frame: np.asarray(Image.open(io.BytesIO(frame)))
