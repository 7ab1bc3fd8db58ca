"""Tokens of a server: found, read again when refused, renewed."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from medad_serve.client.retries import Unavailable
from medad_serve.errors import MedadError

URL = "http://127.0.0.1:8080"
KEY_HINT = "Name the server's key_file.json with --key-file or MEDAD_KEY_FILE, or set MEDAD_TOKEN"


def find_key_file(url: str = URL, store: Path = Path("model_store")) -> Path | None:
    """Return the token file of a server on this machine: where it is named, or where servers put it."""
    if named := os.environ.get("MEDAD_KEY_FILE"):
        return Path(named)
    places = (store / f".server-{_port(url)}", Path(), store)
    return next((p / "key_file.json" for p in places if (p / "key_file.json").is_file()), None)


class Tokens:
    """The inference token of one server; safe to share between threads.

    A token given is used as it is. One from a key file is read again when refused (another client may have
    renewed it, or the server started again), then renewed through the management API, which writes it into
    that file. What a server that is just starting may mend is raised as Unavailable.
    """

    def __init__(
        self, url: str, http: httpx.Client, *, key_file: Path | None, token: str | None, management_url: str | None
    ) -> None:
        self.url = url
        self.http = http
        self.key_file = key_file if key_file or token else find_key_file(url)
        self.given = token
        self.management_url = (management_url or _management_url(url, self.key_file)).rstrip("/")
        self._renewing = threading.Lock()

    def current(self) -> str | None:
        """Return the token to send, None where there is none."""
        return self.given or self._key("inference")

    def renew(self, refused: str | None) -> str | None:
        """Return a token other than the one refused."""
        if self.key_file is None:
            what = "wrong or has expired" if refused else "needed and none was found"
            raise MedadError(f"the server at {self.url} says that its token is {what}", KEY_HINT)
        with self._renewing:
            current = self._key("inference")
            if current != refused:
                return current
            self._ask_new_token()
            renewed = self._key("inference")
        if renewed == refused:  # TorchServe tells a new token only through its file
            raise MedadError(
                f"the server wrote its new token into its own key_file.json, not into {self.key_file}",
                "Copy that file again",
            )
        return renewed

    def _ask_new_token(self) -> None:
        headers = {"Authorization": f"Bearer {self._key('API')}"}
        try:
            answer = self.http.get(f"{self.management_url}/token", params={"type": "inference"}, headers=headers)
        except httpx.HTTPError:
            raise Unavailable(
                503,
                f"the token has expired and no management API answers at {self.management_url}",
                "Name it with --management-url, or ask for a new token on the server's machine",
                where="token",
            ) from None
        if answer.status_code != 200:
            raise Unavailable(
                503,
                f"{self.management_url} gives no new token for the key in {self.key_file}",
                "The server was started again since, or it is another one's file: " + KEY_HINT.lower(),
                where="token",
            )

    def _key(self, kind: str) -> str | None:
        if self.key_file is None:
            return None
        for last in (False, False, True):
            try:
                return str(json.loads(self.key_file.read_text())[kind]["key"])
            except (OSError, ValueError, KeyError, TypeError) as error:
                fault = type(error).__name__
            if not last:
                time.sleep(0.1)  # the server may be writing it this moment
        raise Unavailable(503, f"{self.key_file} holds no {kind} key ({fault})", KEY_HINT, where="token")


def _management_url(url: str, key_file: Path | None) -> str:
    """Return the address that the server's own settings name, else the port after the inference port."""
    settings = key_file.parent / "config.properties" if key_file else None
    if settings and settings.is_file():
        for line in settings.read_text(encoding="utf-8").splitlines():
            if line.startswith("management_address="):
                return line.partition("=")[2].strip().replace("//0.0.0.0", "//127.0.0.1")
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}:{_port(url) + 1}"


def _port(url: str) -> int:
    parts = urlsplit(url)
    return parts.port or {"https": 443}.get(parts.scheme, 80)
