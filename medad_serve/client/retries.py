"""When a request is sent again: nothing was answered, and asking twice changes nothing at the server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Literal, TypeVar

import httpx
from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential
from tenacity.nap import sleep_using_event

from medad_serve.errors import MedadError

Answered = TypeVar("Answered")
MOST_DEATHS = 5
"""Workers that may die under one request: from then on it is taken for the cause."""


@dataclass(frozen=True)
class Retries:
    """How often and how long what was not answered is sent again."""

    tries: int = 30
    total_s: float = 60
    """Longest wait for one request, and longest silence of the server before everything left is given up."""
    first_contact_s: float = 3
    """The same before the server has said anything: most likely there is none."""
    first_s: float = 0.25
    """Bound of the first pause; each pause is random between 0 and a bound that doubles from try to try."""
    longest_s: float = 8


class Unavailable(MedadError):
    """Nobody answered, or somebody who could not: the same request may be answered later."""

    def __init__(
        self,
        code: int,
        message: str,
        hint: str,
        *,
        where: Literal["server", "network", "token"] = "server",
        after_s: float = 0,
        died: bool = False,
    ) -> None:
        super().__init__(message, hint)
        self.code = code
        self.where = where
        """What failed: a server that took the connection, the way to it, or its token."""
        self.after_s = after_s
        """Seconds to wait that the server asked for."""
        self.died = died
        """A worker died under the request."""
        self.tries = 1

    def to_json(self) -> dict[str, object]:
        """Return the answer of an item that was never answered."""
        said = f"{self.message} ({self.tries} tries)" if self.tries > 1 else self.message
        return {"error": {"code": self.code, "message": said, "hint": self.hint}, "answered": False}


class Patience:
    """Sends again what one server left unanswered; safe to share between threads."""

    def __init__(self, retries: Retries) -> None:
        self.retries = retries
        self.met = False
        """The server has answered, be it that it cannot."""
        self._silent_since: float | None = None
        self._closed = threading.Event()
        self._backoff = wait_random_exponential(multiplier=retries.first_s, max=retries.longest_s)

    def ask(self, attempt: Callable[[], Answered]) -> Answered:
        """Return what ``attempt`` returns, or raise its last Unavailable; other errors are raised at once."""
        deaths = 0

        def again(error: BaseException) -> bool:
            nonlocal deaths
            # a token that was good may be so again, once the server has started; the first one is the user's to mend
            if not isinstance(error, Unavailable) or (error.where == "token" and not self.met):
                return False
            deaths += error.died
            return deaths < MOST_DEATHS

        retrying = Retrying(
            retry=retry_if_exception(again),
            wait=self._pause,
            stop=self._gives_up,
            sleep=sleep_using_event(self._closed),
            reraise=True,
        )
        try:
            answer = retrying(attempt)
        except Unavailable as error:
            error.tries = retrying.statistics["attempt_number"]
            raise
        self._silent_since = None
        return answer

    def close(self) -> None:
        """End every pause, and let nothing be sent again."""
        self._closed.set()

    def _pause(self, state: RetryCallState) -> float:
        return max(self._backoff(state), _fault(state).after_s)

    def _gives_up(self, state: RetryCallState) -> bool:
        now = time.monotonic()
        if self._silent_since is None:
            self._silent_since = now
        patience = self.retries.total_s if self.met else min(self.retries.first_contact_s, self.retries.total_s)
        return (
            self._closed.is_set()
            or state.attempt_number >= self.retries.tries
            or state.idle_for + state.upcoming_sleep > patience
            or now - self._silent_since > patience
        )


def retry_after(response: httpx.Response) -> float:
    """Return the seconds that Retry-After asks for, as a number or a date (RFC 9110 10.2.3); 0 without it."""
    said = response.headers.get("Retry-After", "")
    try:
        return max(0.0, float(said) if said.isdigit() else parsedate_to_datetime(said).timestamp() - time.time())
    except ValueError:
        return 0.0


def _fault(state: RetryCallState) -> Unavailable:
    error = state.outcome.exception() if state.outcome else None
    assert isinstance(error, Unavailable)  # nothing else is tried again
    return error
