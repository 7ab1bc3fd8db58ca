"""Certificates that cannot serve are named before the start."""

from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path

import pytest
from certificates import FORMATS, make_pair

from medad_serve.errors import MedadError
from medad_serve.server import Ports, Server, Tls
from medad_serve.server.tls import trusting


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return make_pair(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return make_pair(tmp_path_factory.mktemp("other"))


def test_a_good_pair_becomes_torchserves_settings(pair: Tls, tmp_path: Path) -> None:
    settings = pair.settings()
    assert settings == {
        "certificate_file": str(pair.certificate),
        "private_key_file": str(pair.key),
        "enable_grpc_ssl": "true",
    }
    server = Server(tmp_path, Ports(inference=1234), pair)
    assert server.url("inference") == "https://127.0.0.1:1234"
    assert server.url("management") == "https://127.0.0.1:8081"
    assert make_pair(tmp_path, format=FORMATS.TraditionalOpenSSL).settings()  # BEGIN RSA PRIVATE KEY


def test_a_chain_after_the_certificate_is_taken(pair: Tls, other: Tls, tmp_path: Path) -> None:
    chain = tmp_path / "chain.pem"
    chain.write_bytes(pair.certificate.read_bytes() + other.certificate.read_bytes())
    assert Tls(chain, pair.key).settings()["certificate_file"] == str(chain)


def test_what_cannot_serve_is_named(pair: Tls, other: Tls, tmp_path: Path) -> None:
    words = tmp_path / "words.pem"
    words.write_text("no PEM at all")
    words.chmod(0o600)
    damaged = tmp_path / "damaged.pem"
    damaged.write_bytes(pair.certificate.read_bytes().replace(b"M", b"N"))
    both = tmp_path / "both.pem"
    both.write_bytes(pair.certificate.read_bytes() + pair.key.read_bytes())
    both.chmod(0o600)
    gone = tmp_path / "gone.pem"
    cases = {
        "gone.pem cannot be read": [Tls(gone, pair.key), Tls(pair.certificate, gone)],
        "holds no certificate": [Tls(words, pair.key)],
        "damaged certificate": [Tls(damaged, pair.key)],
        "does not belong to": [Tls(pair.certificate, other.key)],
        "not one private key": [Tls(pair.certificate, words), Tls(pair.certificate, both)],
        "has a passphrase": [make_pair(tmp_path / "secret", passphrase=b"x")],
        "has no RSA key": [make_pair(tmp_path / "ec", kind="ec")],
        "is no RSA key": [make_pair(tmp_path / "sec1", kind="ec", format=FORMATS.TraditionalOpenSSL)],
        "has expired": [make_pair(tmp_path / "old", days=(-3, -1))],
        "is not valid yet": [make_pair(tmp_path / "new", days=(1, 3))],
    }
    for fault, pairs in cases.items():
        for each in pairs:
            with pytest.raises(MedadError, match=fault) as caught:
                each.settings()
            assert caught.value.hint
            assert "PRIVATE" not in str(caught.value)


@pytest.mark.parametrize(
    ("mode", "fine"), [(0o600, True), (0o400, True), (0o640, None), (0o644, False), (0o660, False)]
)
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, mode: int, fine: bool | None) -> None:
    """0640 is what a key of root's for the server's group has."""
    pair = make_pair(tmp_path)
    pair.key.chmod(mode)
    if fine if fine is not None else pair.key.stat().st_uid == 0:
        assert pair.settings()
    else:
        with pytest.raises(MedadError, match="chmod 600"):
            pair.settings()


def test_https_in_the_settings_without_a_certificate_is_refused(tmp_path: Path) -> None:
    """TorchServe would sign one for itself."""
    (tmp_path / "config.properties").write_text("inference_address=https://127.0.0.1:8443\n")
    with pytest.raises(MedadError, match="needs a certificate"):
        Server(tmp_path).start()


def test_whoever_pins_a_certificate_refuses_every_other(pair: Tls, other: Tls) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            for _ in range(2):
                connection, _ = listening.accept()
                with connection:
                    try:
                        context.wrap_socket(connection, server_side=True).close()
                    except (ssl.SSLError, OSError):
                        continue

        thread = threading.Thread(target=answer)
        thread.start()
        address = listening.getsockname()
        with socket.create_connection(address) as raw, trusting(pair.certificate).wrap_socket(raw) as secured:
            assert secured.version()
        refused = pytest.raises(ssl.SSLCertVerificationError)
        with socket.create_connection(address) as raw, refused, trusting(other.certificate).wrap_socket(raw):
            pass
        thread.join(10)
