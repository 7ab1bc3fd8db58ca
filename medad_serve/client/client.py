"""One server, asked by any number of threads; what it leaves unanswered is sent again."""

from __future__ import annotations

import random
import ssl
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from medad_serve.client.packing import body_of
from medad_serve.client.retries import Patience, Retries, Unavailable, retry_after
from medad_serve.client.tokens import URL, Tokens
from medad_serve.errors import InputError, MedadError

Answer = dict[str, Any]
Source = bytes | Path | Sequence[Path]
"""Bytes of a file, a file, or the files of one series."""
REFUSED = "InvalidKeyException"
"""What TorchServe calls a missing, wrong or expired token, with status 400."""
TLS_ALONE = "only accepts HTTPS"
"""What TorchServe answers to plain HTTP, with status 403."""
RENEWALS = 5
RETRIES = Retries()
_LATER = (502, 503, 504, 507)


class Client:
    """One server; safe to share between threads.

    ``token`` or ``key_file`` as of :class:`~medad_serve.client.tokens.Tokens`; ``ca`` names the PEM file of the
    authority (or of the certificate itself) that an https server is checked by, the system's otherwise.
    """

    def __init__(
        self,
        url: str = URL,
        *,
        key_file: Path | None = None,
        token: str | None = None,
        management_url: str | None = None,
        ca: Path | None = None,
        retries: Retries = RETRIES,
        timeout: float = 300,
    ) -> None:
        self.url = url.rstrip("/")
        local = urlsplit(self.url).hostname in ("127.0.0.1", "localhost", "::1")
        self._timeout = timeout
        self._http = httpx.Client(
            timeout=timeout,
            limits=httpx.Limits(max_connections=None),
            trust_env=not local,  # a proxy has no part in loopback
            verify=_trusted(ca),
        )
        self._tokens = Tokens(self.url, self._http, key_file=key_file, token=token, management_url=management_url)
        self._patience = Patience(retries)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._patience.close()
        self._http.close()

    def token(self) -> str | None:
        """Return the token that is sent, as it is now."""
        return self._tokens.current()

    def predict(self, source: Source, model: str, *, heatmap: str | None = None, policy: str | None = None) -> Answer:
        """Return the answer for a file, its bytes or a series; an item's own error is returned as its JSON.

        One that was never answered holds ``"answered": False`` beside its error. Raises MedadError where no
        item would be answered: no server, no such model, no valid token.
        """
        asked = {"X-Medad-Heatmap": heatmap, "X-Medad-Policy": policy}
        headers = {name: value for name, value in asked.items() if value}
        try:
            return self._patience.ask(lambda: self._attempt(source, model, headers))
        except Unavailable as fault:
            if fault.where == "server" or self._patience.met:
                return fault.to_json()
            raise
        except InputError as error:
            return error.to_json()

    def predict_many(
        self,
        sources: Iterable[Source],
        model: str,
        *,
        heatmap: str | None = None,
        policy: str | None = None,
        concurrency: int = 8,
    ) -> Iterator[Answer]:
        """Yield the answers in order, asking for several at a time so that the server can batch them.

        Raises as :meth:`predict` before the first answer; later, what cannot be asked any more is an item's
        error, and no answer is lost.
        """
        left = iter(sources)
        pool = ThreadPoolExecutor(max(1, concurrency))

        def submit(count: int) -> list[Future[Answer]]:
            return [
                pool.submit(self.predict, source, model, heatmap=heatmap, policy=policy)
                for source in islice(left, count)
            ]

        waiting = deque(submit(2 * max(1, concurrency)))  # bounded: answers can hold a heatmap
        answered = False
        try:
            while waiting:
                try:
                    answer = waiting.popleft().result()
                except MedadError as error:
                    if not answered:
                        raise
                    answer = Unavailable(502, error.message, error.hint).to_json()
                answered = answered or answer.get("answered", True)
                waiting.extend(submit(1))
                yield answer
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _attempt(self, source: Source, model: str, headers: dict[str, str]) -> Answer:
        """Send one request, with a new token where the one at hand is refused; raises Unavailable."""
        token = self._tokens.current()
        answer = self._post(source, model, headers, token)
        for attempt in range(RENEWALS):
            if not _is_refusal(answer):
                return _content(answer, model)
            # Each renewal ends the token before: of clients that renew at once, one may outdo another's.
            time.sleep(attempt * random.uniform(0, 0.2))
            token = self._tokens.renew(token)
            answer = self._post(source, model, headers, token)
        if _is_refusal(answer):
            raise MedadError("the server refuses its own new token", "Check that --key-file is this server's")
        return _content(answer, model)

    def _post(self, source: Source, model: str, headers: dict[str, str], token: str | None) -> httpx.Response:
        body = body_of(source)
        headers = {"Content-Type": body.kind, **headers}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        url = f"{self.url}/predictions/{quote(model, safe='')}"
        timeout = httpx.Timeout(self._timeout, connect=min(self._timeout, self._patience.connect_s))
        try:
            answer = self._http.post(url, content=body.content, headers=headers, timeout=timeout)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            if isinstance(fault := _root(error), ssl.SSLError):
                raise _untrusted(self.url, fault) from None
            raise Unavailable(
                503, f"no server answers at {self.url}", "Start one: medad-serve serve", where="network"
            ) from None
        except httpx.TimeoutException:
            raise Unavailable(504, "the server did not answer in time", "Send it again, or raise the timeout") from None
        except (httpx.NetworkError, httpx.RemoteProtocolError):
            hint = "Send it again; check the file's size" + ("" if self._patience.met else ", and whether to ask https")
            raise Unavailable(502, "the server closed the connection", hint) from None
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeEncodeError) as error:
            raise MedadError(f"{self.url} cannot be asked ({error})", "Check --url and the options") from None
        self._patience.met = self._patience.met or not _is_refusal(answer)
        return answer


def _trusted(ca: Path | None) -> ssl.SSLContext | bool:
    if ca is None:
        return True
    try:
        context = ssl.create_default_context(cafile=str(ca))
    except (OSError, ssl.SSLError):
        raise MedadError(f"{ca} holds no certificate", "Name a PEM file with --ca") from None
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # it may be the server's own, and no authority
    return context


def _root(error: BaseException) -> BaseException:
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error


def _untrusted(url: str, fault: ssl.SSLError) -> MedadError:
    if isinstance(fault, ssl.SSLCertVerificationError):
        said = f"the certificate of {url} is not trusted ({fault.verify_message})"
        return MedadError(said, "Name its authority, or the certificate itself, with --ca FILE")
    return MedadError(f"{url} does not speak TLS ({fault.reason})", "Ask it by http://, or check the port")


def _is_refusal(answer: httpx.Response) -> bool:
    return answer.status_code == 400 and REFUSED in answer.text


def _content(answer: httpx.Response, model: str) -> Answer:
    """Return the handler's JSON, or TorchServe's own refusal in the same form; raises Unavailable."""
    status = answer.status_code
    try:
        said = answer.json()
    except ValueError:
        said = None
    is_own = isinstance(said, dict) and ("score" in said or "error" in said)
    if status in _LATER or (status >= 500 and not is_own):
        raise _unavailable(answer, said)
    if is_own:
        return dict(said)
    if status == 403 and TLS_ALONE in answer.text:
        raise MedadError("the server speaks TLS alone", "Ask it by https://, with --ca FILE")
    if status == 404:
        raise MedadError(f"the server has no model {model!r}", "Start it with: medad-serve serve --model NAME")
    if status == 413:
        return InputError(413, "the file is larger than the server takes", "Send fewer slices").to_json()
    reason = said.get("message") if isinstance(said, dict) else None
    code = status if 400 <= status < 500 and httpx.codes.get_reason_phrase(status) else 502
    return InputError(code, reason or "the server gave no answer", "Check what --url points at").to_json()


def _unavailable(answer: httpx.Response, said: object) -> Unavailable:
    """Return why a server could not answer: in its own words, the handler's, or by its status alone."""
    told = said.get("error", said) if isinstance(said, dict) else {}
    message = str(told.get("message", "")) if isinstance(told, dict) else ""
    return Unavailable(
        answer.status_code,
        message.rstrip(".") or f"the server answered {answer.status_code}",
        "Send it again later",
        after_s=retry_after(answer),
        died=answer.status_code == 500,
    )
