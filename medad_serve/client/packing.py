"""Files to request bodies, read while they are sent: what is held does not grow with a series."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from medad_serve.errors import InputError

CHUNK = 2**20


def content(source: bytes | Path | Sequence[Path]) -> bytes | Iterator[bytes]:
    """Return the body for bytes, a file, or the files of one series; raises InputError 400 for an unreadable file."""
    if isinstance(source, bytes):
        return source
    if isinstance(source, Path):
        chunks = _chunks(source)
        first = next(chunks, b"")
        return first if len(first) < CHUNK else chain((first,), chunks)
    for file in source:  # before a connection is made for it
        _open(file).close()
    return zipped(source)


def zipped(files: Iterable[Path]) -> Iterator[bytes]:
    """Yield a ZIP of ``files`` in their order, stored: slices are dense, and the server reads it without inflating.

    Members are numbered: a file's name can be a patient's.
    """
    sink = _Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        for number, file in enumerate(files):
            with archive.open(zipfile.ZipInfo(f"{number:06d}"), "w") as member:
                for chunk in _chunks(file):
                    member.write(chunk)
                    yield from sink.drain()
    yield from sink.drain()


class _Sink:
    """What zipfile writes into without seeking, handed on piece by piece."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes, /) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """There is nothing below."""

    def close(self) -> None:
        """Likewise."""

    def drain(self) -> list[bytes]:
        parts, self._parts = self._parts, []
        return parts


def _chunks(file: Path) -> Iterator[bytes]:
    with _open(file) as opened:
        while chunk := opened.read(CHUNK):
            yield chunk


def _open(file: Path) -> BinaryIO:
    try:
        return file.open("rb")
    except OSError as error:
        raise InputError(400, f"the file cannot be read ({error.strerror})", "Check the path") from None
