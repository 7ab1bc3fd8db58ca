"""Ask a running server: files in, the server's own JSON answers out, tokens found and renewed on the way."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from medad_serve.errors import InputError, MedadError

URL = "http://127.0.0.1:8080"
REFUSED = "InvalidKeyException"
"""What TorchServe calls a missing, wrong or expired token, with status 400."""
RENEWALS = 5
KEY_HINT = "Name the server's key_file.json with --key-file or MEDAD_KEY_FILE, or set MEDAD_TOKEN"
Answer = dict[str, Any]


def find_key_file(url: str = URL, store: Path = Path("model_store")) -> Path | None:
    """Return the token file of a server on this machine: where it is named, or where servers put it."""
    if named := os.environ.get("MEDAD_KEY_FILE"):
        return Path(named)
    port = urlsplit(url).port or 80
    places = (store / f".server-{port}", Path(), store)
    return next((p / "key_file.json" for p in places if (p / "key_file.json").is_file()), None)


class Client:
    """One server; safe to share between threads.

    A token given is used as it is. One from a key file is read again when refused (another client may have
    renewed it), then renewed through the management API, which writes it into that file.
    """

    def __init__(
        self,
        url: str = URL,
        *,
        key_file: Path | None = None,
        token: str | None = None,
        management_url: str | None = None,
        timeout: float = 300,
    ) -> None:
        self.url = url.rstrip("/")
        self.key_file = key_file if key_file or token else find_key_file(self.url)
        self.token = token
        self.management_url = (management_url or _management_url(self.url, self.key_file)).rstrip("/")
        local = urlsplit(self.url).hostname in ("127.0.0.1", "localhost", "::1")
        self._http = httpx.Client(timeout=timeout, trust_env=not local)  # a proxy has no part in loopback
        self._renewing = threading.Lock()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def predict(
        self, source: Path | bytes, model: str, *, heatmap: str | None = None, policy: str | None = None
    ) -> Answer:
        """Return the answer for one file or its bytes; an item's own error is returned as its JSON.

        Raises MedadError where no item would be answered: no server, no such model, no valid token.
        """
        try:
            body = source.read_bytes() if isinstance(source, Path) else source
        except OSError as error:
            return InputError(400, f"the file cannot be read ({error.strerror})", "Check the path").to_json()
        asked = {"X-Medad-Heatmap": heatmap, "X-Medad-Policy": policy}
        headers = {name: value for name, value in asked.items() if value}
        token = self.token or self._key("inference")
        answer = self._post(model, body, headers, token)
        for attempt in range(RENEWALS):
            if not _is_refusal(answer):
                return _content(answer, model)
            # Each renewal ends the token before: of clients that renew at once, one may outdo another's.
            time.sleep(attempt * random.uniform(0, 0.2))
            token = self._renew(token)
            answer = self._post(model, body, headers, token)
        if _is_refusal(answer):
            raise MedadError("the server refuses its own new token", "Check that --key-file is this server's")
        return _content(answer, model)

    def predict_many(
        self,
        sources: Sequence[Path | bytes],
        model: str,
        *,
        heatmap: str | None = None,
        policy: str | None = None,
        concurrency: int = 8,
    ) -> Iterator[Answer]:
        """Yield the answers in order, asking for several at a time so that the server can batch them."""
        with ThreadPoolExecutor(max(1, concurrency)) as pool:
            waiting = [pool.submit(self.predict, source, model, heatmap=heatmap, policy=policy) for source in sources]
            try:
                for future in waiting:
                    yield future.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _post(self, model: str, body: bytes, headers: dict[str, str], token: str | None) -> httpx.Response:
        headers = {"Content-Type": "application/octet-stream", **headers}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        try:
            return self._http.post(f"{self.url}/predictions/{quote(model, safe='')}", content=body, headers=headers)
        except httpx.ConnectError:
            raise MedadError(f"no server answers at {self.url}", "Start one: medad-serve serve") from None
        except httpx.TimeoutException:
            return _made(504, "the server did not answer in time", "Send it again, or raise the timeout")
        except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError):
            return _made(502, "the server closed the connection", "Send it again; check the file's size")
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeEncodeError) as error:
            raise MedadError(f"{self.url} cannot be asked ({error})", "Check --url and the options") from None

    def _renew(self, refused: str | None) -> str | None:
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
            answer = self._http.get(f"{self.management_url}/token", params={"type": "inference"}, headers=headers)
        except httpx.HTTPError:
            raise MedadError(
                f"the token has expired and no management API answers at {self.management_url}",
                "Name it with --management-url, or ask for a new token on the server's machine",
            ) from None
        if answer.status_code != 200:
            raise MedadError(
                f"{self.management_url} gives no new token for the key in {self.key_file}",
                "The server was started again since, or it is another one's file: " + KEY_HINT.lower(),
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
        raise MedadError(f"{self.key_file} holds no {kind} key ({fault})", KEY_HINT)


def _management_url(url: str, key_file: Path | None) -> str:
    """Return the address that the server's own settings name, else the port after the inference port."""
    settings = key_file.parent / "config.properties" if key_file else None
    if settings and settings.is_file():
        for line in settings.read_text(encoding="utf-8").splitlines():
            if line.startswith("management_address="):
                return line.partition("=")[2].strip().replace("//0.0.0.0", "//127.0.0.1")
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}:{(parts.port or 80) + 1}"


def _is_refusal(answer: httpx.Response) -> bool:
    return answer.status_code == 400 and REFUSED in answer.text


def _content(answer: httpx.Response, model: str) -> Answer:
    """Return the handler's JSON, or TorchServe's own refusal in the same form."""
    try:
        content = answer.json()
    except ValueError:
        content = None
    if isinstance(content, dict) and ("score" in content or "error" in content):
        return content
    said = content.get("message", "") if isinstance(content, dict) else ""
    if answer.status_code == 404:
        raise MedadError(f"the server has no model {model!r}", "Start it with: medad-serve serve --model NAME")
    if answer.status_code == 413:
        return InputError(413, "the file is larger than the server takes", "Send fewer slices").to_json()
    hint = "Send it again later" if answer.status_code >= 500 else "Check what --url points at"
    return InputError(_known(answer.status_code), said or "the server gave no answer", hint).to_json()


def _known(status: int) -> int:
    return status if 400 <= status < 600 and httpx.codes.get_reason_phrase(status) else 502


def _made(code: int, message: str, hint: str) -> httpx.Response:
    return httpx.Response(code, json=InputError(code, message, hint).to_json())
