"""Strings that occur nowhere else, put wherever a request has room for any, and the search for them."""

from __future__ import annotations

import gzip
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.datadict import DicomDictionary
from pydicom.dataset import Dataset, FileDataset
from pydicom.sequence import Sequence

_numbers = itertools.count(1)
WORD, NUMBER, YEAR = "QZX", "77031", "1847"
TRACE = re.compile(rb"(?i)QZX\d{5}|77031\d{4}|1847[01]\d[0-3]\d")
"""A marked word, a marked number (as text, in a UID, before a point), a marked date."""


def word() -> str:
    """Return a word of its own, within the 16 characters that the shortest DICOM texts hold."""
    return f"{WORD}{next(_numbers):05d}"


def number() -> int:
    """Return a number of its own that no clock, port or size has."""
    return int(f"{NUMBER}{next(_numbers) % 10_000:04d}")


def traces(data: bytes) -> set[bytes]:
    """Return what of the marks is in ``data``."""
    return set(TRACE.findall(data))


def traces_in(*folders: Path) -> dict[Path, set[bytes]]:
    """Return the files below ``folders`` whose content or name holds a mark; packed ones are unpacked."""
    found = {}
    for path in itertools.chain.from_iterable(folder.rglob("*") for folder in folders):
        data = b""
        if path.is_file():
            data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        if seen := traces(data + b"\n" + path.name.encode()):
            found[path] = seen
    return found


def fill(ds: FileDataset, *, spare: bool) -> FileDataset:
    """Put a mark into every element of the dictionary and private ones; ``spare`` what decoding reads."""
    kept = {element.tag for element in ds} if spare else set()
    for tag, (vr, _, _, retired, _) in DicomDictionary.items():
        group = tag >> 16
        if group in (0x0000, 0x0002, 0x7FE0, 0xFFFE) or tag in kept or (spare and group in (0x0028, 0x5400)):
            continue
        if spare and (retired or tag in _READ):
            continue
        value = mark_of(vr.split(" or ")[0])
        if value is not None:
            ds.add_new(tag, vr.split(" or ")[0], value)
    for keyword in ("PatientID", "PatientName", "SeriesInstanceUID", "StudyInstanceUID", "SOPInstanceUID"):
        setattr(ds, keyword, f"1.2.{number()}" if keyword.endswith("UID") else word())
    block = ds.private_block(0x0011, word(), create=True)
    for offset, vr in enumerate(("LO", "UT", "PN", "DS", "UN", "OB"), start=1):
        block.add_new(offset, vr, mark_of(vr))
    return ds


_READ = {0x00080005, 0x00080008, 0x00080060, 0x00180015, 0x00201041, 0x00280034, 0x52009229, 0x52009230, 0x00189073}
_TEXTS = ("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT")


def mark_of(vr: str) -> Any:
    """Return a marked value of a value representation; None for those too small to be told from chance."""
    if vr in _TEXTS:
        return word()
    if vr in ("OB", "OW", "UN", "OD", "OF", "OL", "OV"):
        return word().encode().ljust(16)
    if vr == "SQ":
        item = Dataset()
        item.CodeMeaning, item.TextValue, item.PersonName = word(), word(), word()
        return Sequence([item])
    match vr:
        case "UI":
            return f"1.2.{number()}"
        case "DA":
            return f"{YEAR}{next(_numbers) % 12 + 1:02d}{next(_numbers) % 28 + 1:02d}"
        case "DT":
            return f"{YEAR}{next(_numbers) % 12 + 1:02d}{next(_numbers) % 28 + 1:02d}115959"
        case "IS" | "UL" | "SL" | "UV" | "SV":
            return number()
        case "DS":
            return f"{number()}.5"
        case "FD" | "FL":
            return float(number())
    return None


def cut(data: bytes, seed: int) -> Iterator[bytes]:
    """Yield damaged copies: cut short, and with bytes exchanged where they break the most."""
    yield data[: len(data) // 2]
    yield data[:1000]
    rng = np.random.default_rng(seed)
    for _ in range(3):
        broken = bytearray(data)
        for at in rng.integers(0, len(data), 40):
            broken[at] ^= int(rng.integers(1, 256))
        yield bytes(broken)
