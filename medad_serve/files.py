"""Files and directories that are written whole or not at all."""

from __future__ import annotations

import hashlib
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def sha256(path: Path) -> str:
    """Digest a file in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


STALE_SECONDS = 24 * 3600


def _beside(target: Path) -> Path:
    """Return a hidden sibling of ``target`` that nobody else uses; what a kill left there long ago is removed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(f".{target.name}.*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(left) if left.is_dir() else left.unlink()
    return target.with_name(f".{target.name}.{secrets.token_hex(6)}")


@contextmanager
def whole_directory(target: Path, *, keep: bool = False) -> Iterator[Path]:
    """Yield a directory beside ``target`` that becomes it on success and vanishes on failure.

    A killed process leaves only a hidden sibling, never a half-written ``target``. A ``target`` that is there
    at the end is replaced, or stays with ``keep`` (where two processes write the same).
    """
    beside = _beside(target)
    old = beside.with_name(beside.name + ".old")
    beside.mkdir()
    try:
        yield beside
        if not (keep and target.exists()):
            if target.exists():
                target.rename(old)
            try:
                beside.rename(target)
            except OSError:
                if old.exists() and not target.exists():
                    old.rename(target)
                if not (keep and target.exists()):
                    raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def write_whole(path: Path, data: bytes | str) -> None:
    """Write a file beside ``path``, then rename it over; a device or pipe is written to, never replaced."""
    content = data.encode() if isinstance(data, str) else data
    if path.exists() and not path.is_file():
        path.write_bytes(content)
        return
    beside = _beside(path)
    try:
        with beside.open("xb") as file:
            file.write(content)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
