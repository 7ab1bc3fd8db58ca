"""The artifact directory: manifest and exported graphs, written whole or not at all, verified on load."""

from __future__ import annotations

import json
from pathlib import Path

from medad_serve.errors import MedadError
from medad_serve.files import sha256, write_whole
from medad_serve.spec import SCHEMA_VERSION, Manifest, full_name, validated

MANIFEST = "medad.json"
GRAPHS = {
    "onnx/float32": "model.onnx",
    "onnx/float16": "model.float16.onnx",
    "onnx/int8": "model.int8.onnx",
    "torchscript/float32": "model.ts",
    "torchscript/bfloat16": "model.bfloat16.ts",
    "openvino/float32": "model.openvino.onnx",
    "openvino/bfloat16": "model.openvino.onnx",
    "openvino/int8": "model.int8.openvino.onnx",
    "openvino/int8-bfloat16": "model.int8.openvino.onnx",
}
"""File of the graph of each variant, ``runtime/precision``."""


def graph_of(variant: str) -> str:
    """Return the file of a variant's graph; raises MedadError naming the variants that there are."""
    try:
        return GRAPHS[full_name(variant)]
    except KeyError:
        raise MedadError(f"there is no runtime {variant!r}", f"Choose one of: {', '.join(GRAPHS)}") from None


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


def locate(path: Path) -> Path:
    """Return the artifact that a path means: itself, that of a run, or that of an experiment's newest run.

    The newest run counts even where it was not exported: an older model must not answer in its place.
    """
    if (path / MANIFEST).is_file():
        return path
    runs = sorted(config.parent for config in path.glob("*/config.yaml"))
    run = path if (path / "config.yaml").is_file() or not runs else runs[-1]
    return run / "artifact" if (run / "config.yaml").is_file() else path


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
