"""The certificate and key that TorchServe speaks TLS with: checked before the start, trusted by whoever asks.

TorchServe reads one RSA key without a passphrase and speaks TLS 1.2 with ECDHE and AES-128 alone (its ConfigManager);
a key that it cannot read it replaces, silently, by a certificate that no client knows.
"""

from __future__ import annotations

import re
import ssl
from pathlib import Path
from typing import NamedTuple

from medad_serve.errors import MedadError

CIPHER = "ECDHE-RSA-AES128-GCM-SHA256"
NAME = "tls"
"""Of the certificate in the handshake that checks it; never looked up."""
MAKE_ONE = "Make one with: openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:3072 -out KEY"
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_KEY = re.compile(r"\s*-----BEGIN (RSA )?PRIVATE KEY-----[A-Za-z0-9+/=\s]+-----END (RSA )?PRIVATE KEY-----\s*")
_DATES = {9: "is not valid yet", 10: "has expired"}
"""Codes of X509_verify_cert: X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED."""


class Tls(NamedTuple):
    """PEM files: the server's certificate, with its chain after it, and the certificate's key."""

    certificate: Path
    key: Path

    def settings(self) -> dict[str, str]:
        """Check the pair and return TorchServe's settings for it.

        Raises MedadError for a file that cannot be read, a key open to others or of a kind that TorchServe does
        not read, a key of another certificate, and a certificate outside its dates.
        """
        certificate, key = self.certificate.resolve(), self.key.resolve()
        leaf = _leaf(certificate)
        _check_key(key)
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            server.load_cert_chain(certificate, key)
        except ssl.SSLError as error:
            raise MedadError(_refusal(error, certificate, key), "Give the pair that belongs together") from None
        server.maximum_version = ssl.TLSVersion.TLSv1_2
        server.set_ciphers(CIPHER)
        _shake_hands(server, trusting(leaf), certificate)
        return {
            "certificate_file": str(certificate),
            "private_key_file": str(key),
            "enable_grpc_ssl": "true",
        }


def trusting(certificate: Path | str) -> ssl.SSLContext:
    """Return a client's context that takes this very certificate (a file, or its PEM text), whoever issued it.

    Its host name is not compared: who pins the certificate knows the server, and a server that listens on loopback
    is asked there whatever name it has.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # it may be no authority itself
    context.load_verify_locations(cadata=_leaf(certificate) if isinstance(certificate, Path) else certificate)
    return context


def _leaf(path: Path) -> str:
    """Return the first certificate of a file."""
    found = _CERTIFICATE.search(_text(path, "certificate"))
    if found is None:
        raise MedadError(f"{path} holds no certificate in PEM", "Give the file that begins BEGIN CERTIFICATE")
    try:
        ssl.PEM_cert_to_DER_cert(found[0])
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=found[0])
    except (ssl.SSLError, ValueError):
        raise MedadError(f"{path} holds a damaged certificate", "Copy it again") from None
    return found[0]


def _check_key(path: Path) -> None:
    text = _text(path, "key")
    status = path.stat()
    # as PostgreSQL has it: a key that root owns may be read by the group that the server runs in
    if status.st_mode & (0o037 if status.st_uid == 0 else 0o077):
        raise MedadError(f"the key {path} can be read by others", f"Run: chmod 600 {path}")
    if "ENCRYPTED" in text:
        raise MedadError(f"the key {path} has a passphrase", "Write it without: openssl pkey -in KEY -out NEW")
    if "EC PRIVATE KEY" in text:
        raise MedadError(f"the key {path} is no RSA key, the only kind that TorchServe reads", MAKE_ONE)
    if not _KEY.fullmatch(text):
        raise MedadError(f"{path} is not one private key in PEM and nothing else", "Run: openssl pkey -in KEY -out NEW")


def _text(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="ascii")
    except UnicodeDecodeError:
        raise MedadError(f"the {what} {path} is not PEM", "Convert it with openssl") from None
    except OSError as error:
        raise MedadError(f"the {what} {path} cannot be read ({error.strerror})", "Check path and rights") from None


def _refusal(error: ssl.SSLError, certificate: Path, key: Path) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"the key {key} does not belong to the certificate {certificate}"
    return f"{certificate} and {key} cannot be used for TLS ({error.reason or 'unreadable'})"


def _shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, certificate: Path) -> None:
    """Let the two meet in memory, as they will over the network: what TLS itself checks need not be checked here."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(back, there), server.wrap_bio(there, back, server_side=True)]
    try:
        while ends:
            for end in list(ends):
                try:
                    end.do_handshake()
                    ends.remove(end)
                except ssl.SSLWantReadError:
                    pass
    except ssl.SSLCertVerificationError as error:
        fault = _DATES.get(error.verify_code, f"is refused ({error.verify_message})")
        raise MedadError(f"the certificate {certificate} {fault}", "Have it issued again") from None
    except ssl.SSLError as error:
        if error.reason == "NO_SHARED_CIPHER":
            raise MedadError(f"{certificate} has no RSA key, the only kind that TorchServe reads", MAKE_ONE) from None
        raise MedadError(f"{certificate} cannot be used for TLS ({error.reason})", "Have it issued again") from None
