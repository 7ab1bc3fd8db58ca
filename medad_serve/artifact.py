"""The artifact directory: manifest and exported graphs, written whole or not at all, verified on load."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medad_serve.errors import MedadError
from medad_serve.spec import SCHEMA_VERSION, Manifest, validated

MANIFEST = "medad.json"
GRAPHS = {"onnx": "model.onnx", "torchscript": "model.ts"}
"""File of each runtime's graph."""


def sha256(path: Path) -> str:
    """Digest a file in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def whole_directory(target: Path) -> Iterator[Path]:
    """Yield a directory beside ``target`` that becomes it on success and vanishes on failure.

    A killed process leaves only the hidden sibling, never a half-written ``target``; an existing ``target``
    is replaced at the end.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    old = beside.with_name(beside.name + ".old")
    try:
        yield beside
        beside.chmod(0o755)
        if target.exists():
            target.rename(old)
        beside.rename(target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def write_whole(path: Path, data: bytes | str) -> None:
    """Write a file beside ``path``, then rename it over."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    beside = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
        beside.chmod(0o644)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write ``medad.json`` with the digests of the files beside it."""
    files = {f.name: sha256(f) for f in sorted(directory.iterdir()) if f.is_file() and f.name != MANIFEST}
    manifest = manifest.model_copy(update={"files": files})
    write_whole(directory / MANIFEST, manifest.model_dump_json(indent=1) + "\n")


def parse_manifest(text: str | bytes, source: str) -> Manifest:
    """Check and read the text of a manifest; ``source`` is what an error calls it."""
    try:
        data = json.loads(text)
    except ValueError:
        raise MedadError(f"{source} is not JSON", "Export the model again") from None
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise MedadError(
            f"{source} has schema version {version!r}, this medad-serve reads {SCHEMA_VERSION}",
            "Export the model again with this version, or install the one that wrote it",
        )
    return validated(Manifest, data, source)


def load_manifest(directory: Path) -> Manifest:
    """Read and verify an artifact: schema, presence and digest of every file, each fault by name."""
    path = directory / MANIFEST
    if not path.is_file():
        raise MedadError(f"{directory} is no artifact: {MANIFEST} is missing", "Run: medad-serve export RUN")
    manifest = parse_manifest(path.read_bytes(), str(path))
    for name, digest in manifest.files.items():
        file = directory / name
        if Path(name).name != name:
            raise MedadError(f"{path} names a file outside the artifact", "Export the model again")
        if not file.is_file():
            raise MedadError(f"{file} is missing", "Export the model again, or copy the whole artifact")
        if sha256(file) != digest:
            raise MedadError(f"{file} differs from its digest in {MANIFEST}", "Export the model again")
    return manifest
