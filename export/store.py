"""The model store: archives, the index of their digests, TorchServe's settings; reading runs nothing."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from medad_serve.errors import MedadError, one_line
from medad_serve.export.inspection import AGAIN, HANDLER, Inspection, read_archive
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


def private_logging(*, console: bool = True, models: Sequence[str] = ()) -> bytes:
    """Return TorchServe's own logging without what a request says.

    Exceptions are reduced to where they were thrown: their messages can hold patient data, as a body sent as a form
    (curl's default) that is none is quoted whole. Of a request line, method and path stay, as far as they are
    TorchServe's words or one of ``models``: whoever errs may name a patient in the place of a model.
    """
    spec = find_spec("ts")
    if spec is None or spec.origin is None:
        raise MedadError("TorchServe is not installed", "Run: pip install torchserve")
    with zipfile.ZipFile(Path(spec.origin).parent / "frontend" / "model-server.jar") as jar:
        logging = jar.read("log4j2.xml")
    logging = logging.replace(b"%m%n", b"%m%notEmpty{ (thrown in %ex{short.className})}%n")
    logging = logging.replace(b"<PatternLayout ", b'<PatternLayout alwaysWriteExceptions="false" ')
    start, named, rest = logging.partition(b'name="access_log"')
    logging = start + named + rest.replace(b"%m%notEmpty", _request_line(models).encode() + b"%notEmpty", 1)
    # else it is written to ts_log.log and the console again, as it came
    logging = logging.replace(b'<Logger name="ACCESS_LOG" ', b'<Logger name="ACCESS_LOG" additivity="false" ')
    logging = _QUIETER.sub(_QUIET, logging)
    return logging if console else logging.replace(b'<AppenderRef ref="STDOUT"/>', b"")


_QUIETER = re.compile(rb'<Logger name="org.pytorch.serve" level="debug">\s*<AppenderRef ref="ts_log"/>\s*</Logger>')
_QUIET = b"\n\t\t".join(
    b'<Logger name="org.pytorch.serve%s"/>' % rest
    for rest in (
        b'" level="info',
        *(b'.wlm.%s" level="warn' % c for c in (b"WorkerThread", b"WorkerLifeCycle", b"BatchAggregator")),
    )
)
"""Twenty lines a request, each twice, are more work for the server than some requests."""


def _request_line(models: Sequence[str]) -> str:
    """Return the log4j2 pattern of ``/address "POST /predictions/NAME HTTP/1.1" status milliseconds``."""
    names = "|".join(re.escape(name) for name in models)
    spaces = "predictions|models|v1/models|v2/models|explanations"
    path = "|".join([f"(?:{spaces})/(?:{names})" if names else "(?!)", spaces, "v2", "ping", "metrics", "token"])
    line = rf'^(?:(\S+) "((?:GET|POST|PUT|DELETE|OPTIONS|HEAD|PATCH) /(?:{path})(?=[/?: ]))?.*" (\d+ \d+)|.*)$'
    return f'%replace{{%m}}{{(?s){line}}}{{$1 "$2" $3}}'.replace('"', "&quot;")


def installed_handler() -> Path:
    """Return the handler's file without importing it."""
    spec = find_spec("medad_serve.handlers.medad_handler")
    if spec is None or spec.origin is None:
        raise MedadError("the handler is not installed", "Install medad-serve again")
    return Path(spec.origin)
