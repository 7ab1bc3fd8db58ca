"""The files within a ZIP, without ever unpacking to disk."""

from __future__ import annotations

import zipfile
from io import BytesIO

from medad_serve.errors import InputError
from medad_serve.io.limits import Limits

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
