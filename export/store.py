"""The model store: archives, the index of their digests, TorchServe's settings; reading runs nothing."""

from __future__ import annotations

import json
import re
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from medad_serve.errors import MedadError
from medad_serve.export.inspection import AGAIN, HANDLER, Inspection, one_line, read_archive
from medad_serve.files import sha256
from medad_serve.spec import Manifest

INDEX = "index.json"
PROPERTIES = "config.properties"
LOGGING = "log4j2.xml"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")


class Verified(NamedTuple):
    """An archive that may be served, or, without an index beside it, that agrees with itself."""

    archive: Inspection
    digest: str
    """sha256 of the whole file."""
    indexed: bool
    """Whether the store's index names this digest: only then is it known to be the archive that was made here."""


def verify(mar: Path) -> Manifest:
    """Check an archive against its store's index and its own manifest without running any of it.

    Refuses, by name: an unknown or altered archive, one that `read_archive` refuses, and a handler that is not the
    installed one.
    """
    return inspect(mar).archive.manifest


def inspect(mar: Path, *, index: bool = True) -> Verified:
    """Check like `verify` and return everything seen; ``index=False`` lets a folder without index.json pass."""
    if not mar.is_file():
        raise MedadError(f"{one_line(str(mar))} is missing", AGAIN)
    place = mar.parent / INDEX
    expected = read_index(mar.parent).get(mar.name)
    if expected is None and (index or place.exists()):
        raise MedadError(f"{one_line(mar.name)} is not in {place}", AGAIN)
    digest = sha256(mar)
    if expected not in (None, digest):
        raise MedadError(f"{one_line(mar.name)} differs from its digest in {place}", AGAIN)
    archive = read_archive(mar)
    if archive.manifest.files[HANDLER] != sha256(installed_handler()):
        raise MedadError(f"{mar.name} holds another handler than the one installed", AGAIN)
    return Verified(archive, digest, expected is not None)


def check_name(name: str) -> None:
    """Refuse a model name that cannot stand in a file name and a URL."""
    if not NAME.fullmatch(name):
        raise MedadError(f"{name!r} cannot name a model", "Use letters, digits, '-' and '_'")


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
