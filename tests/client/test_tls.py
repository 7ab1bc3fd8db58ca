"""The client asking by https, against a stand-in with a certificate made on the spot."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from certificates import make_pair
from faulty_server import ANSWER, FaultyServer, faulty_server

from medad_serve.client import Client, Retries
from medad_serve.errors import MedadError
from medad_serve.loadbench import Sent, Target
from medad_serve.server import Tls

ONCE = Retries(tries=1)


@pytest.fixture
def pair(tmp_path: Path) -> Tls:
    return make_pair(tmp_path)


@pytest.fixture
def server(pair: Tls) -> Iterator[FaultyServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    with faulty_server(context=context) as made:
        yield made


def test_a_certificate_that_is_named_is_trusted(server: FaultyServer, pair: Tls) -> None:
    with Client(server.url, token="t", ca=pair.certificate, retries=ONCE) as client:
        assert client.predict(b"x", "m") == ANSWER
    Target(server.url, "m", ca=pair.certificate).check(Sent(b"x"))


def test_a_stranger_is_not_trusted_and_never_sent_anything(server: FaultyServer) -> None:
    with Client(server.url, token="t") as client, pytest.raises(MedadError, match=r"not trusted \(self.*--ca"):
        client.predict(b"x", "m")
    assert server.met == []


def test_a_server_without_tls_is_said_to_have_none() -> None:
    with faulty_server() as plain:
        url = plain.url.replace("http:", "https:")
        with Client(url, token="t") as client, pytest.raises(MedadError, match="does not speak TLS"):
            client.predict(b"x", "m")


@pytest.mark.parametrize("content", [None, b"no certificate"])
def test_a_file_without_a_certificate_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(MedadError, match=r"ca\.pem holds no certificate"):
        Client("https://127.0.0.1:1", token="t", ca=path)
