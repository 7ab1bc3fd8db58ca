"""Certificates for tests, made on the spot."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from medad_serve.server import Tls

NOW = datetime.datetime.now(datetime.UTC)
PEM = serialization.Encoding.PEM
FORMATS = serialization.PrivateFormat


def make_pair(
    folder: Path,
    *,
    days: tuple[float, float] = (-1, 30),
    kind: str = "rsa",
    passphrase: bytes | None = None,
    format: serialization.PrivateFormat = FORMATS.PKCS8,
) -> Tls:
    """Write a self-signed certificate of 127.0.0.1, valid between two days from now, and its key."""
    key = rsa.generate_private_key(65537, 2048) if kind == "rsa" else ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pacs.example")])
    hosts = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    made = made.not_valid_before(NOW + datetime.timedelta(days[0])).not_valid_after(NOW + datetime.timedelta(days[1]))
    signed = made.add_extension(hosts, critical=False).sign(key, hashes.SHA256())
    hidden = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    folder.mkdir(parents=True, exist_ok=True)
    pair = Tls(folder / "cert.pem", folder / "key.pem")
    pair.certificate.write_bytes(signed.public_bytes(PEM))
    pair.key.touch(mode=0o600)
    pair.key.write_bytes(key.private_bytes(PEM, format, hidden))
    return pair
