"""The model store: archives, the index of their digests, TorchServe's settings; reading runs nothing."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from medad_serve.artifact import GRAPHS, MANIFEST, parse_manifest
from medad_serve.errors import MedadError
from medad_serve.files import sha256
from medad_serve.spec import Manifest

INDEX = "index.json"
PROPERTIES = "config.properties"
LOGGING = "log4j2.xml"
HANDLER = "medad_handler.py"
MODEL_CONFIG = "model-config.yaml"
TORCHSERVE_MANIFEST = "MAR-INF/MANIFEST.json"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
AGAIN = "Run: medad-serve archive ARTIFACT"


def verify(mar: Path) -> Manifest:
    """Check an archive against its store's index and its own manifest without running any of it.

    Refuses, by name: an unknown or altered archive, a member outside the manifest or the archive's folder,
    and a handler that is not the installed one.
    """
    if not mar.is_file():
        raise MedadError(f"{mar} is missing", AGAIN)
    digest = read_index(mar.parent).get(mar.name)
    if digest is None:
        raise MedadError(f"{mar.name} is not in {mar.parent / INDEX}", AGAIN)
    if sha256(mar) != digest:
        raise MedadError(f"{mar.name} differs from its digest in {mar.parent / INDEX}", AGAIN)
    try:
        with zipfile.ZipFile(mar) as packed:
            return _verify_members(packed, mar.name)
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise MedadError(f"{mar.name} is no readable archive ({type(error).__name__})", AGAIN) from None


def check_name(name: str) -> None:
    """Refuse a model name that cannot stand in a file name and a URL."""
    if not NAME.fullmatch(name):
        raise MedadError(f"{name!r} cannot name a model", "Use letters, digits, '-' and '_'")


def model_config(mar: Path) -> dict[str, Any]:
    """Return the model configuration inside a verified archive."""
    with zipfile.ZipFile(mar) as packed:
        config = yaml.safe_load(packed.read(MODEL_CONFIG))
    return config if isinstance(config, dict) else {}


def read_index(store: Path) -> dict[str, str]:
    """Return the digests of a store's archives by file name; an absent index is an empty one."""
    path = store / INDEX
    if not path.exists():
        return {}
    try:
        index = json.loads(path.read_bytes())
    except (OSError, ValueError):
        index = None
    if not isinstance(index, dict) or not all(isinstance(digest, str) for digest in index.values()):
        raise MedadError(f"{path} is not readable", "Delete it and archive the models again")
    return index


def read_properties(path: Path) -> dict[str, str]:
    """Read a TorchServe configuration: one ``key=value`` a line, ``#`` comments."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {key.strip(): value.strip() for key, _, value in pairs}


def private_logging(*, console: bool = True) -> bytes:
    """Return TorchServe's own logging with exceptions reduced to where they were thrown.

    Their messages can hold patient data: a body sent as a form (curl's default) that is none is quoted whole.
    """
    spec = find_spec("ts")
    if spec is None or spec.origin is None:
        raise MedadError("TorchServe is not installed", "Run: pip install torchserve")
    with zipfile.ZipFile(Path(spec.origin).parent / "frontend" / "model-server.jar") as jar:
        logging = jar.read("log4j2.xml")
    logging = logging.replace(b"%m%n", b"%m%notEmpty{ (thrown in %ex{short.className})}%n")
    logging = logging.replace(b"<PatternLayout ", b'<PatternLayout alwaysWriteExceptions="false" ')
    return logging if console else logging.replace(b'<AppenderRef ref="STDOUT"/>', b"")


def installed_handler() -> Path:
    """Return the handler's file without importing it."""
    spec = find_spec("medad_serve.handlers.medad_handler")
    if spec is None or spec.origin is None:
        raise MedadError("the handler is not installed", "Install medad-serve again")
    return Path(spec.origin)


def _verify_members(packed: zipfile.ZipFile, name: str) -> Manifest:
    members = [info.filename for info in packed.infolist()]
    outside = [m for m in members if m != TORCHSERVE_MANIFEST and (Path(m).name != m or "\\" in m or m == "..")]
    if outside or len(set(members)) != len(members):
        raise MedadError(f"{name} has a member outside its folder or twice", AGAIN)
    if MANIFEST not in members or TORCHSERVE_MANIFEST not in members:
        raise MedadError(f"{name} has no {MANIFEST} or no {TORCHSERVE_MANIFEST}", AGAIN)
    manifest = parse_manifest(packed.read(MANIFEST), f"{name}/{MANIFEST}")
    known = {HANDLER, MODEL_CONFIG, *GRAPHS.values()}
    if set(members) - {MANIFEST, TORCHSERVE_MANIFEST} != set(manifest.files) or not set(manifest.files) <= known:
        raise MedadError(f"{name} does not hold exactly the files of its {MANIFEST}", AGAIN)
    for file, digest in manifest.files.items():
        with packed.open(file) as member:
            if hashlib.file_digest(member, "sha256").hexdigest() != digest:  # type: ignore[arg-type]
                raise MedadError(f"{name}/{file} differs from its digest in {MANIFEST}", AGAIN)
    if manifest.files.get(HANDLER) != sha256(installed_handler()):
        raise MedadError(f"{name} holds another handler than the one installed", AGAIN)
    torchserve = json.loads(packed.read(TORCHSERVE_MANIFEST))
    model = torchserve.get("model", {})
    ours = (torchserve.get("runtime"), model.get("handler"), model.get("configFile"))
    known_keys = {"modelName", "modelVersion", "handler", "configFile"}
    if ours != ("python", HANDLER, MODEL_CONFIG) or not model.keys() <= known_keys:
        raise MedadError(f"{name}/{TORCHSERVE_MANIFEST} names other code", AGAIN)
    return manifest
