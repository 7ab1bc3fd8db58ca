"""The trained model as PyTorch runs it: what every other engine is held against."""

from __future__ import annotations

from pathlib import Path

from medad_serve.bench.engines.base import EAGER, Engine, Session, Setup, Subject, register
from medad_serve.bench.engines.weights import TorchSession, missing_for_weights, trained, weights_file


@register
class Eager(Engine):
    """No compilation, no export."""

    name = EAGER
    key = "run"
    devices = ("cpu", "cuda")

    def precisions(self, device: str) -> tuple[str, ...]:
        """Return float32, and on a GPU what autocast makes of it."""
        return ("float32",) if device == "cpu" else ("float32", "float16")

    def missing(self, subject: Subject, setup: Setup) -> str | None:
        """Return what is not here."""
        return missing_for_weights(subject, setup)

    def open(self, subject: Subject, setup: Setup) -> Session:
        """Load the weights."""
        return TorchSession(trained(subject, setup), subject, setup)

    def files(self, subject: Subject, setup: Setup) -> tuple[Path, ...]:
        """Return the checkpoint."""
        return (weights_file(subject),)
