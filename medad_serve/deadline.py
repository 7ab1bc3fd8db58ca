"""By when a batch must be answered, and what an item is told for which there is no time left."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from dataclasses import dataclass

from medad_serve.errors import InputError

_LATELY = 9


@dataclass(frozen=True)
class Deadline:
    """The end of a batch's time, by ``time.monotonic()``."""

    end: float = math.inf
    seconds: float = math.inf
    """All of the time, from the batch's start."""

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """Return the deadline of a batch that starts now."""
        return cls(time.monotonic() + seconds, seconds)

    def left(self) -> float:
        """Return the seconds that are left, negative once it has passed."""
        return self.end - time.monotonic()


NEVER = Deadline()


class Postponed(InputError):
    """An item that could not be answered beside its neighbours: alone it may be."""

    def __init__(self, *, given_s: float = math.inf) -> None:
        """``given_s`` is what was too short for it; only with more time is it worth another try in the same batch."""
        super().__init__(503, "the other requests of its batch left no time for this one", "Send it again")
        self.given_s = given_s


def late(needs_s: float, deadline: Deadline) -> InputError:
    """Return the error of an item that was not answered in time and by itself takes ``needs_s``.

    413 where all of the batch's time is not enough for it; otherwise its neighbours took that, and it is postponed.
    """
    if needs_s < deadline.seconds:
        return Postponed()
    hint = "Send fewer slices, or archive the model with a longer --response-timeout"
    return InputError(413, f"the input takes more than {deadline.seconds:.0f} s to answer", hint)


class Pace:
    """Seconds that a unit of work takes, by the median of the last few times."""

    def __init__(self) -> None:
        self._lately: deque[float] = deque(maxlen=_LATELY)

    def took(self, seconds: float, units: int) -> None:
        """Note what some units took."""
        self._lately.append(seconds / max(units, 1))

    def expects(self, units: int) -> float:
        """Return the seconds that some units are likely to take, 0 as long as nothing is known."""
        return units * statistics.median(self._lately) if self._lately else 0.0
