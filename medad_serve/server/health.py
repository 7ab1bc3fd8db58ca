"""Whether every model can be asked: TorchServe's own /ping says Healthy while all workers of a model fail."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from medad_serve.errors import MedadError
from medad_serve.server.management import Management, Workers

LOOK_EVERY_S = 5.0


@dataclass(frozen=True)
class Health:
    """The workers of each model of a server."""

    models: dict[str, Workers]

    @property
    def lost(self) -> list[str]:
        """Models that nobody can ask: none of their workers is ready."""
        return [name for name, workers in self.models.items() if not workers.ready]

    def to_json(self) -> dict[str, Any]:
        """Return it as ``medad-serve health --json`` prints it."""
        return {"healthy": not self.lost, "models": {name: asdict(each) for name, each in self.models.items()}}


def health_of(management: Management, names: Iterable[str] | None = None) -> Health:
    """Ask for the workers of ``names``, of every registered model unless given; raises MedadError as they do."""
    return Health({name: management.workers(name) for name in (management.models() if names is None else names)})


class Watch:
    """Notes since when each model has had no ready worker; a server that does not answer has none of any."""

    def __init__(self, management: Management, names: Iterable[str], patience_s: float) -> None:
        self.management = management
        self.names = list(names)
        self.patience_s = patience_s
        self._last_ready = dict.fromkeys(self.names, time.monotonic())
        self._looked = time.monotonic()

    def given_up(self) -> str | None:
        """Return a model that has had no ready worker for longer than ``patience_s``; asks every few seconds."""
        now = time.monotonic()
        if now - self._looked < min(LOOK_EVERY_S, self.patience_s / 3):
            return None
        try:
            lost = health_of(self.management, self.names).lost
        except MedadError:
            lost = self.names
        self._looked = now = time.monotonic()
        self._last_ready |= {name: now for name in self.names if name not in lost}
        return next((name for name in lost if now - self._last_ready[name] > self.patience_s), None)
