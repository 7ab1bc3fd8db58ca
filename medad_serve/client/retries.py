"""When a request is sent again: nothing was answered, and asking twice changes nothing at the server.

A worker that dies takes every request of its batch with it. Which of them it died of shows when each is sent again
while no other request of this client is under way: those that are innocent are answered then.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Literal, TypeVar

import httpx
from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential
from tenacity.nap import sleep_using_event

from medad_serve.client.gate import Gate
from medad_serve.errors import MedadError

Answered = TypeVar("Answered")
MOST_DEATHS = 3
"""Workers that may die under one request that is sent alone: from then on it is taken for the cause. More than one,
since other clients may share its batch."""
MOST_KILLERS = 20
"""Requests in a row that were taken for the cause: from then on it is the server, and none is sent alone any more."""
CONNECT_S = 10.0
SILENT_CONNECT_S = 1.0
"""Longest wait for a connection to a server that has been silent for too long, and how long its silence is believed."""


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
        self.waited = where == "network" or code == 504
        """All the time of the attempt was spent waiting for the server."""
        self.tries = 1

    def untried(self) -> Unavailable:
        """Return the same fault for a request that was not even sent."""
        return Unavailable(self.code, self.message, self.hint, where=self.where)

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
        self._gate = Gate()
        self._heard = float("-inf")
        self._silent_since: float | None = None
        self._last_fault: Unavailable | None = None
        self._last_fault_at = float("-inf")
        self._killers = 0
        self._closed = threading.Event()
        self._backoff = wait_random_exponential(multiplier=retries.first_s, max=retries.longest_s)

    @property
    def connect_s(self) -> float:
        """Seconds to wait for a connection: no longer than there is patience left for the server."""
        return min(CONNECT_S, max(self._patience_s - self._silence_s, SILENT_CONNECT_S))

    def ask(self, attempt: Callable[[], Answered]) -> Answered:
        """Return what ``attempt`` returns, or raise its last Unavailable; other errors are raised at once.

        After a worker died under it, it is sent alone. A server that has just been silent for too long is not asked.
        """
        if self._last_fault and self._silence_s > self._patience_s and self._since_fault_s < SILENT_CONNECT_S:
            raise self._last_fault.untried()
        try:
            return self._insist(attempt, alone=False)
        except Unavailable as error:
            if not error.died or self._killers >= MOST_KILLERS or error.tries >= self.retries.tries:
                raise
            tried = error.tries
        try:
            with self._gate.alone():
                return self._insist(attempt, alone=True)
        except Unavailable as error:
            error.tries += tried
            self._killers += error.died
            raise

    def close(self) -> None:
        """End every pause, and let nothing be sent again."""
        self._closed.set()

    def _insist(self, attempt: Callable[[], Answered], *, alone: bool) -> Answered:
        """Try until there is an answer, the patience ends or ``attempt`` is suspected: of one death, or of several
        where it is alone.
        """
        deaths = 0

        def again(error: BaseException) -> bool:
            nonlocal deaths
            # a token that was good may be so again, once the server has started; the first one is the user's to mend
            if not isinstance(error, Unavailable) or (error.where == "token" and not self.met):
                return False
            deaths += error.died
            return deaths < (MOST_DEATHS if alone else 1)

        retrying = Retrying(
            retry=retry_if_exception(again),
            wait=self._pause,
            stop=self._gives_up,
            sleep=sleep_using_event(self._closed),
            reraise=True,
        )
        try:
            return retrying(lambda: self._try(attempt, alone))
        except Unavailable as error:
            error.tries = retrying.statistics["attempt_number"]
            raise

    def _try(self, attempt: Callable[[], Answered], alone: bool) -> Answered:
        with nullcontext() if alone else self._gate.together():
            begun = time.monotonic()
            try:
                answer = attempt()
            except Unavailable as fault:
                self._note(fault, begun)
                raise
            self._heard = time.monotonic()
            self._silent_since, self._killers = None, 0
            return answer

    def _note(self, fault: Unavailable, begun: float) -> None:
        """Count the silence of the server: from the beginning of an attempt that waited in vain, else from its end."""
        is_first = self._silent_since is None or self._since_fault_s > self._patience_s  # nobody asked since
        self._last_fault, self._last_fault_at = fault, time.monotonic()
        if fault.died:  # a worker took it: it lives
            self._silent_since = None
        elif is_first:
            self._silent_since = max(begun, self._heard) if fault.waited else self._last_fault_at

    @property
    def _patience_s(self) -> float:
        return self.retries.total_s if self.met else min(self.retries.first_contact_s, self.retries.total_s)

    @property
    def _silence_s(self) -> float:
        since = self._silent_since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def _since_fault_s(self) -> float:
        return time.monotonic() - self._last_fault_at

    def _pause(self, state: RetryCallState) -> float:
        return max(self._backoff(state), _fault(state).after_s)

    def _gives_up(self, state: RetryCallState) -> bool:
        return (
            self._closed.is_set()
            or state.attempt_number >= self.retries.tries
            or state.idle_for + state.upcoming_sleep > self._patience_s
            or self._silence_s > self._patience_s
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
