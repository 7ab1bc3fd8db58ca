"""Pack an artifact for TorchServe: ``<store>/<name>.mar``, whole or not at all."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from medad_serve.artifact import MANIFEST, graph_of, load_manifest
from medad_serve.errors import MedadError
from medad_serve.export.inspection import HANDLER, MODEL_CONFIG
from medad_serve.export.store import (
    INDEX,
    LOGGING,
    PROPERTIES,
    check_name,
    installed_handler,
    private_logging,
    read_index,
    read_properties,
    verify,
)
from medad_serve.files import sha256, write_whole
from medad_serve.io import Limits
from medad_serve.spec import Manifest, full_name

try:
    import fcntl
except ImportError:  # Windows: two archivers at once are then on their own
    fcntl = None  # type: ignore[assignment]

__all__ = ["archive", "verify"]
STARTUP_TIMEOUT_S = 300
BESIDE = ".archive-"


def archive(
    artifact: Path,
    store: Path,
    *,
    name: str | None = None,
    runtime: str | None = None,
    workers: int | None = None,
    batch_size: int = 8,
    max_batch_delay_ms: int = 1,
    response_timeout_s: int = 120,
    limits: Mapping[str, int | str] | None = None,
) -> Path:
    """Write ``<store>/<name>.mar`` and its digest into the store's index, replacing an older one at the end.

    ``runtime`` and ``workers`` None take what was tuned, else onnxruntime and one. The graph of that variant is
    packed; the manifest inside covers handler and model configuration too. ``limits`` are those of
    :class:`~medad_serve.io.Limits` that differ from the built-in ones. Raises MedadError for an artifact that does
    not verify, a runtime that it was not exported for, a limit that is none, or a name that cannot be part of a URL.
    """
    manifest = load_manifest(artifact)
    name = name or manifest.name
    check_name(name)
    variant = full_name(runtime or manifest.default_variant)
    manifest.calibration_of(variant, artifact)
    if graph_of(variant) not in manifest.files:
        raise MedadError(f"{artifact} does not hold {graph_of(variant)}", f"Run: medad-serve export --format {variant}")
    workers = workers or (manifest.tuning.workers if manifest.tuning and manifest.tuning.variant == variant else 1)
    handler: dict[str, Any] = {"runtime": variant}
    if limits:
        handler["limits"] = Limits.of(limits, {}).model_dump(include=set(limits))
    store.mkdir(parents=True, exist_ok=True)
    _settle(store)
    config = {
        "minWorkers": workers,
        "maxWorkers": workers,
        "batchSize": batch_size,
        "maxBatchDelay": max_batch_delay_ms,
        "responseTimeout": response_timeout_s,
        "startupTimeout": STARTUP_TIMEOUT_S,
        "handler": {**handler, "max_answer_bytes": _max_answer_bytes(store)},
    }
    with _locked(store), tempfile.TemporaryDirectory(prefix=BESIDE, dir=store) as beside:
        stage = Path(beside)
        packed = _stage(artifact, manifest, config, stage)
        mar = _package(stage, name, manifest.version, packed)
        target = store / mar.name
        mar.replace(target)
        write_whole(store / INDEX, json.dumps({**read_index(store), target.name: sha256(target)}, indent=1) + "\n")
    return target


def _settle(store: Path) -> None:
    """Give a new store its TorchServe settings; those that are there stay."""
    if not (store / LOGGING).exists():
        write_whole(store / LOGGING, private_logging())
    if not (store / PROPERTIES).exists():
        plain = re.fullmatch(r"[\w./-]+", str(store))  # TorchServe splits JVM options at spaces
        place = (store / LOGGING).as_posix() if plain else (store.resolve() / LOGGING).as_uri()
        settings = files("medad_serve").joinpath(PROPERTIES).read_text(encoding="utf-8")
        settings = settings.replace(f"model_store/{LOGGING}", place)
        if not plain or store.is_absolute() or store.as_posix() != "model_store":
            settings = settings.replace("file://model_store/", f"{store.resolve().as_uri()}/")
        write_whole(store / PROPERTIES, settings)


def _max_answer_bytes(store: Path) -> int:
    return int(read_properties(store / PROPERTIES).get("max_response_size", 6_553_500))


def _stage(artifact: Path, manifest: Manifest, config: dict[str, Any], stage: Path) -> list[str]:
    """Lay out what the archive holds; return the names of all but handler and model configuration."""
    graph = graph_of(config["handler"]["runtime"])
    digests = {graph: manifest.files[graph]}
    for file in digests:
        shutil.copyfile(artifact / file, stage / file)
    shutil.copyfile(installed_handler(), stage / HANDLER)
    (stage / MODEL_CONFIG).write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    extras = {file: sha256(stage / file) for file in (HANDLER, MODEL_CONFIG)}
    covering = manifest.model_copy(update={"files": {**digests, **extras}})
    (stage / MANIFEST).write_text(covering.model_dump_json(indent=1) + "\n", encoding="utf-8")
    load_manifest(stage)  # the copies, too, are what the digests say
    return [MANIFEST, *digests]


def _package(stage: Path, name: str, version: str, members: list[str]) -> Path:
    """Run torch-model-archiver in ``stage``.

    In a process of its own: it empties and removes ``<temporary directory>/<name>``, which must be ours, and
    reads commas and wildcards in paths, so that only names relative to ``stage`` are given.
    """
    for folder in ("tmp", "packed"):
        (stage / folder).mkdir()
    command = [
        sys.executable,
        "-m",
        "model_archiver.model_packaging",
        "--model-name",
        name,
        "--version",
        version,
    ]
    command += ["--handler", HANDLER, "--config-file", MODEL_CONFIG, "--extra-files", ",".join(members)]
    command += ["--export-path", "packed", "--archive-format", "zip-store"]
    temporary = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str((stage / "tmp").resolve()))
    done = subprocess.run(command, cwd=stage, env={**os.environ, **temporary}, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise MedadError(f"torch-model-archiver failed: {last}", "Check free space and permissions of the store")
    return stage / "packed" / f"{name}.mar"


@contextmanager
def _locked(store: Path) -> Iterator[None]:
    """Let one archiver at a time into a store; a killed one's leftovers go with the next."""
    with (store / ".lock").open("w") as lock:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for left in store.glob(f"{BESIDE}*"):
                shutil.rmtree(left, ignore_errors=True)
        yield
