"""A ZIP of DICOM slices to one stack of frames, without ever unpacking to disk."""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import replace
from io import BytesIO

import numpy as np
from numpy.typing import NDArray

from medad_serve.errors import InputError
from medad_serve.io.dicom import decode_dicom, is_dicom
from medad_serve.io.limits import Limits
from medad_serve.io.pixels import Pixels

ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_ENTRY = b"PK\x01\x02"
_CHUNK = 2**20
_ENCRYPTED = 0x1
_LITTER = ("__MACOSX/", "Thumbs.db", ".DS_Store", "desktop.ini")
"""What operating systems add to archives: no part of anybody's data, so it earns no warning."""


def read_members(source: bytes, limits: Limits) -> list[bytes]:
    """Return the files of a ZIP in archive order, leaving out folders and what operating systems add.

    Sizes are counted while inflating, declared ones are not believed. Errors never show member names.

    Raises:
        InputError: 400 damaged, 413 too many files or bytes, 415 encrypted, nested or oddly compressed.
    """
    # each entry of the directory begins with this mark; zipfile would build them all before one can count
    if source.count(_ENTRY) > limits.max_members:
        raise InputError(413, f"the ZIP holds more than {limits.max_members} files", "Send fewer files")
    try:
        with zipfile.ZipFile(BytesIO(source)) as archive:
            return _inflate_all(archive, limits)
    except (InputError, MemoryError):
        raise
    except Exception:  # zipfile raises far more than BadZipFile on damaged directories
        raise InputError(400, "the ZIP cannot be read", "The file is damaged or cut short: send it whole") from None


def _inflate_all(archive: zipfile.ZipFile, limits: Limits) -> list[bytes]:
    members: list[bytes] = []
    left = limits.max_bytes
    for info in archive.infolist():
        if info.is_dir() or info.filename.startswith(_LITTER) or info.filename.endswith(_LITTER):
            continue
        if info.flag_bits & _ENCRYPTED:
            raise InputError(415, "the ZIP is encrypted", "Send it without a password")
        # the other methods' readers inflate a whole block at once, without bound
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError(415, "the ZIP uses a compression other than deflate", "Zip it with the default")
        members.append(_inflate(archive, info, left))
        left -= len(members[-1])
        if members[-1].startswith(ZIP):
            raise InputError(415, "the ZIP holds another ZIP", "Send one ZIP of DICOM files")
    return members


def _inflate(archive: zipfile.ZipFile, info: zipfile.ZipInfo, left: int) -> bytes:
    parts: list[bytes] = []
    with archive.open(info) as file:
        while part := file.read(_CHUNK):
            left -= len(part)
            if left < 0:
                raise InputError(413, "the ZIP inflates to more than is accepted", "Send fewer files")
            parts.append(part)
    return b"".join(parts)


def decode_zip(source: bytes, limits: Limits) -> Pixels:
    """Decode a ZIP of DICOM slices into one stack ``(frames, H, W)``, ordered along the slice normal.

    The series, orientation and size with most slices is kept; whatever is left out is counted in
    ``facts.notes``. Slices that state no place keep the order of the archive. Where slices differ in
    spacing or windows, those of the first hold.

    Raises:
        InputError: 400 no member is a readable image, 413 or 415 as of :func:`read_members`.
    """
    slices, refusals = _decode_all(read_members(source, limits), limits)
    if not slices:
        reasons = "; ".join(refusals) or "it is empty"
        raise InputError(400, f"no file of the ZIP is a readable DICOM image ({reasons})", "Send DICOM slices")
    notes = [f"{_files(count)} left out: {reason}" for reason, count in refusals.items()]
    kept = _most(slices, "of another series", lambda p: p.facts.series, notes)
    kept = _most(kept, "of another orientation", lambda p: p.facts.normal, notes)
    kept = _most(kept, "of another size", lambda p: (p.array.shape[1:], p.inverted), notes)
    return _stack(_in_order(kept, notes), notes)


def _decode_all(members: list[bytes], limits: Limits) -> tuple[list[Pixels], Counter[str]]:
    """Return what decodes, and how many members do not, by reason."""
    slices: list[Pixels] = []
    refusals: Counter[str] = Counter()
    values = frames = 0
    for member in members:
        try:
            if not is_dicom(member):
                raise InputError(415, "it is no DICOM file")
            slices.append(decode_dicom(member, limits))
        except InputError as error:
            refusals[error.message] += 1
            continue
        values += slices[-1].array.size
        frames += slices[-1].frames
        if values > limits.max_values or frames > limits.max_frames:
            fault = f"the ZIP holds more than {limits.max_values} values or {limits.max_frames} frames"
            raise InputError(413, fault, "Send fewer files")
    return slices, refusals


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"


def _most(slices: list[Pixels], fault: str, key: Callable[[Pixels], Hashable], notes: list[str]) -> list[Pixels]:
    """Keep the slices of the commonest key (the first of equals), noting how many are left out."""
    common = Counter(map(key, slices)).most_common(1)[0][0]
    kept = [pixels for pixels in slices if key(pixels) == common]
    if len(kept) < len(slices):
        notes.append(f"{_files(len(slices) - len(kept))} {fault} left out")
    return kept


def _in_order(slices: list[Pixels], notes: list[str]) -> list[Pixels]:
    places = [pixels.facts.position for pixels in slices]
    known = [place for place in places if place is not None]
    if len(known) < len(slices):
        if len(slices) > 1:
            notes.append("slices without (0020,0032) Image Position (Patient): kept in the order of the ZIP")
        return slices
    if len(set(known)) < len(known):
        notes.append("some slices lie at the same place")
    order = sorted(range(len(slices)), key=known.__getitem__)
    return [slices[i] for i in order]


def _stack(slices: list[Pixels], notes: list[str]) -> Pixels:
    first = slices[0]
    if any(pixels.spacing_mm != first.spacing_mm for pixels in slices):
        notes.append("slices differ in (0028,0030) Pixel Spacing: that of the first is used")
    ranges = [pixels.facts.stored_range for pixels in slices]
    inner = dict.fromkeys(note for pixels in slices for note in pixels.facts.notes)
    facts = replace(
        first.facts,
        stored_range=(min(low for low, _ in ranges), max(high for _, high in ranges)),
        notes=(*notes, *inner),
    )
    padding = None
    if any(pixels.padding is not None for pixels in slices):
        padding = np.concatenate([_mask(pixels) for pixels in slices])
    return replace(first, array=np.concatenate([p.array for p in slices]), padding=padding, facts=facts)


def _mask(pixels: Pixels) -> NDArray[np.bool_]:
    return np.zeros(pixels.array.shape, np.bool_) if pixels.padding is None else pixels.padding
