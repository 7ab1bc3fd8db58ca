"""TorchServe's settings for one server: those of the store, with the ports and the certificate put in."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from urllib.parse import urlsplit

from medad_serve.errors import MedadError
from medad_serve.export.store import PROPERTIES, read_properties
from medad_serve.server.tls import Tls

KINDS = ("inference", "management", "metrics")


@dataclass(frozen=True)
class Ports:
    """Ports in place of those in the store's config.properties; None keeps them."""

    inference: int | None = None
    management: int | None = None
    metrics: int | None = None

    @classmethod
    def free(cls) -> Ports:
        """Return ports that nobody listens on, so that a server of the user's own is left alone."""
        with ExitStack() as stack:
            sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
            return cls(*(each.getsockname()[1] for each in sockets))


def run_directory(store: Path, port: int) -> Path:
    """Return where the server of ``store`` at an inference port keeps its token, settings and logs."""
    return store / f".server-{port}"


def settings_of(store: Path, ports: Ports, tls: Tls | None = None) -> dict[str, str]:
    """Return config.properties of the store, or the packaged one, with ports and certificate put in."""
    own = store / PROPERTIES
    packaged = Path(str(files("medad_serve").joinpath(PROPERTIES)))
    settings = read_properties(own if own.exists() else packaged)
    for kind, port in zip(KINDS, (8080, 8081, 8082), strict=True):
        address = settings.setdefault(f"{kind}_address", f"http://127.0.0.1:{port}")
        chosen = getattr(ports, kind)
        if chosen is not None or tls is not None:
            parts = urlsplit(address)
            host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
            scheme = "https" if tls else parts.scheme
            settings[f"{kind}_address"] = f"{scheme}://{host}:{chosen or port_of(address)}"
    for kind in KINDS[:2]:
        settings.setdefault(f"grpc_{kind}_port", "0")  # a free one; its fixed default would collide
    settings.setdefault("metrics_config", str(files("medad_serve").joinpath("metrics.yaml")))
    if tls:
        settings |= {"certificate_file": str(tls.certificate), "private_key_file": str(tls.key)}
    return settings


def tls_of(settings: dict[str, str]) -> Tls | None:
    """Return the certificate that settings name; raises MedadError for https without one.

    TorchServe would then sign one for itself, which no client can tell from anybody else's.
    """
    pair = [settings.get(key) for key in ("certificate_file", "private_key_file")]
    if pair[0] and pair[1]:
        return Tls(Path(pair[0]), Path(pair[1]))
    if any(settings[f"{kind}_address"].startswith("https:") for kind in KINDS):
        raise MedadError("https needs a certificate and its key", "Give --tls-cert FILE --tls-key FILE")
    return None


def port_of(url: str) -> int:
    """Return the port of an address, that of its scheme unless it names one."""
    parts = urlsplit(url)
    return parts.port or {"https": 443}.get(parts.scheme, 80)


def check_port(kind: str, url: str) -> None:
    """Raise MedadError where the port of ``url`` cannot be opened."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((urlsplit(url).hostname or "127.0.0.1", port_of(url)))
        except OSError as error:
            raise MedadError(
                f"{kind} port {port_of(url)} cannot be opened ({error.strerror})",
                f"Choose another with --{kind}-port, or end what uses it",
            ) from None
