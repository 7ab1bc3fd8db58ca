"""Read a .mar that anybody may have made: nothing of it is run, unpacked, or believed before it is checked.

TorchServe walks an archive from its front, Python reads the directory at its end. Only one that both read alike is let
through: its members lie one after the other, uncompressed, and fill the file.
"""

from __future__ import annotations

import hashlib
import json
import stat
import struct
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import ConfigDict, Field, field_validator

from medad_serve.artifact import GRAPHS, MANIFEST, graph_of, parse_manifest
from medad_serve.errors import MedadError, one_line
from medad_serve.io import DEFAULT_LIMITS, Limits
from medad_serve.spec import Frozen, Manifest, full_name, validated

HANDLER = "medad_handler.py"
MODEL_CONFIG = "model-config.yaml"
TORCHSERVE_MANIFEST = "MAR-INF/MANIFEST.json"
AGAIN = "Run: medad-serve archive ARTIFACT"
MAX_TEXT = {MANIFEST: 2**25, TORCHSERVE_MANIFEST: 2**16, MODEL_CONFIG: 2**16, HANDLER: 2**20}
"""Bytes of what is read into memory; a manifest holds up to 10,000 scores a level, runtime and precision."""
_DIRECTORY_BYTES = 4096
"""Six entries of about 70 bytes; zipfile would build an object for each of millions."""
_END = 22  # the record at the end of a ZIP, which `archive` writes without a comment
_HEADER = struct.Struct("<4s2xHH4xIIIHH")
_UTF8 = 0x800


class HandlerConfig(Frozen):
    """What the handler reads of model-config.yaml; numbers and words of later versions pass."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, int | float | str]

    runtime: str = "onnx"
    max_answer_bytes: int = Field(0, ge=0)
    limits: Limits = DEFAULT_LIMITS

    @field_validator("runtime")
    @classmethod
    def _is_known(cls, variant: str) -> str:
        if full_name(variant) not in GRAPHS:
            raise ValueError(f"choose one of: {', '.join(GRAPHS)}")
        return variant


class ModelConfig(Frozen):
    """model-config.yaml: TorchServe runs whole programs for some other keys, so there are no others."""

    model_config = ConfigDict(strict=True)

    minWorkers: int = Field(ge=1)
    maxWorkers: int = Field(ge=1)
    batchSize: int = Field(ge=1)
    maxBatchDelay: int = Field(ge=0)
    responseTimeout: int = Field(ge=1)
    startupTimeout: int = Field(ge=1)
    handler: HandlerConfig


class Inspection(NamedTuple):
    """What an archive holds, once every check of its content has passed."""

    manifest: Manifest
    config: ModelConfig
    sizes: dict[str, int]
    """Bytes by file name."""


def read_archive(mar: Path) -> Inspection:
    """Check an archive by its own manifest, without running any of it.

    Raises MedadError, in one line, for what is no archive or not laid out as `archive` lays it out, members outside
    the manifest or the folder, twice, linked or compressed, a digest that differs, and files that do not read as
    what they should be.
    """
    try:
        _check_directory(mar)
        with zipfile.ZipFile(mar) as packed:
            return _read(packed, mar)
    except MedadError as error:
        raise MedadError(one_line(error.message), error.hint) from None
    except Exception as error:  # zipfile and the parsers raise far more than they document
        raise MedadError(one_line(f"{mar.name} is no readable archive ({type(error).__name__})"), AGAIN) from None


def _check_directory(mar: Path) -> None:
    """Refuse a directory of millions before zipfile builds an object for each."""
    with mar.open("rb") as file:
        file.seek(-min(_END, mar.stat().st_size), 2)
        end = file.read()
    mark, length, comment = struct.unpack("<4s8xI4xH", end)
    if mark != b"PK\5\6" or comment or length > _DIRECTORY_BYTES:
        raise MedadError(f"{mar.name} is no readable archive (its directory)", AGAIN)


def _read(packed: zipfile.ZipFile, mar: Path) -> Inspection:
    name, members = mar.name, packed.namelist()
    outside = [m for m in members if m != TORCHSERVE_MANIFEST and (Path(m).name != m or "\\" in m or m == "..")]
    if outside or len(set(members)) != len(members):
        raise MedadError(f"{name} has a member outside its folder or twice", AGAIN)
    for needed in (MANIFEST, TORCHSERVE_MANIFEST):
        if needed not in members:
            raise MedadError(f"{name} has no {needed}", AGAIN)
    _check_layout(packed, mar)
    manifest = parse_manifest(_text(packed, name, MANIFEST), f"{name}/{MANIFEST}")
    known = {HANDLER, MODEL_CONFIG, *GRAPHS.values()}
    if set(members) - {MANIFEST, TORCHSERVE_MANIFEST} != set(manifest.files) or not set(manifest.files) <= known:
        raise MedadError(f"{name} does not hold exactly the files of its {MANIFEST}", AGAIN)
    for file, digest in manifest.files.items():
        with packed.open(file) as member:
            if hashlib.file_digest(member, "sha256").hexdigest() != digest:  # type: ignore[arg-type]
                raise MedadError(f"{name}/{file} differs from its digest in {MANIFEST}", AGAIN)
    for file in (HANDLER, MODEL_CONFIG):
        if file not in manifest.files:
            raise MedadError(f"{name} has no {file}", AGAIN)
    _check_code(_text(packed, name, TORCHSERVE_MANIFEST), name)
    text = _text(packed, name, MODEL_CONFIG)
    if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):  # a few of them fill any memory
        raise MedadError(f"{name}/{MODEL_CONFIG} repeats itself by aliases", AGAIN)
    config = validated(ModelConfig, yaml.safe_load(text), f"{name}/{MODEL_CONFIG}")
    graph = graph_of(config.handler.runtime)
    if graph not in manifest.files:
        raise MedadError(f"{name} has no {graph}, which its {MODEL_CONFIG} names", AGAIN)
    return Inspection(manifest, config, {info.filename: info.file_size for info in packed.infolist()})


def _check_layout(packed: zipfile.ZipFile, mar: Path) -> None:
    """Refuse what only one of the two readers would see: bytes between members, other names in their own headers."""
    at = 0
    with mar.open("rb") as file:
        for info in sorted(packed.infolist(), key=lambda info: info.header_offset):
            if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
                raise MedadError(f"{mar.name} has a member that is no plain file", AGAIN)
            if (
                info.compress_type != zipfile.ZIP_STORED
                or info.flag_bits & ~_UTF8
                or info.file_size != info.compress_size
            ):
                raise MedadError(f"{mar.name} has a compressed or encrypted member", AGAIN)
            file.seek(info.header_offset)
            mark, flags, method, crc, packed_size, size, name, extra = _HEADER.unpack(file.read(_HEADER.size))
            own = (mark, flags, method, crc, packed_size, size, file.read(name))
            there = (b"PK\3\4", info.flag_bits, 0, info.CRC, info.file_size, info.file_size, _raw_name(info))
            if own != there or extra or info.header_offset != at:
                raise MedadError(f"{mar.name} has bytes that no member accounts for", AGAIN)
            at = file.tell() + info.file_size
    if at != packed.start_dir:
        raise MedadError(f"{mar.name} has bytes that no member accounts for", AGAIN)


def _raw_name(info: zipfile.ZipInfo) -> bytes:
    return info.orig_filename.encode("utf-8" if info.flag_bits & _UTF8 else "cp437")


def _text(packed: zipfile.ZipFile, name: str, member: str) -> bytes:
    if packed.getinfo(member).file_size > MAX_TEXT[member]:
        raise MedadError(f"{name}/{member} is larger than such a file can be", AGAIN)
    return packed.read(member)


def _check_code(text: bytes, name: str) -> None:
    """Refuse a TorchServe manifest that would run anything but our handler with our configuration."""
    torchserve = json.loads(text, object_pairs_hook=_once)
    model = torchserve.get("model") if isinstance(torchserve, dict) else None
    if not isinstance(model, dict):
        raise MedadError(f"{name}/{TORCHSERVE_MANIFEST} names no model", AGAIN)
    ours = (torchserve.get("runtime"), model.get("handler"), model.get("configFile"))
    known = {"modelName", "modelVersion", "handler", "configFile"}
    if ours != ("python", HANDLER, MODEL_CONFIG) or not model.keys() <= known:
        raise MedadError(f"{name}/{TORCHSERVE_MANIFEST} names other code", AGAIN)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a key that stands twice: readers differ in which one counts."""
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)
