"""torch.compile: the trained model, compiled when it first meets a batch of some size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medad_serve.bench.engines.base import Engine, Session, Setup, Subject, register
from medad_serve.bench.engines.weights import (
    FixedSession,
    missing_compiler,
    missing_for_weights,
    trained,
    weights_file,
)


@register
class Compiled(Engine):
    """Inductor with its weights frozen into the code, for each batch size anew: shapes are constants."""

    name = "torch.compile"
    key = "run"
    devices = ("cpu", "cuda")

    def precisions(self, device: str) -> tuple[str, ...]:
        """Return float32, and on a GPU what autocast makes of it."""
        return ("float32",) if device == "cpu" else ("float32", "float16")

    def missing(self, subject: Subject, setup: Setup) -> str | None:
        """Return what is not here."""
        return missing_for_weights(subject, setup) or missing_compiler()

    def open(self, subject: Subject, setup: Setup) -> Session:
        """Load the weights; compiling waits for the first batch. On a GPU its calls become CUDA graphs."""
        import torch

        # What Dynamo has compiled of one piece of code is limited, over all models of a process; beyond, it gives the
        # eager function back and says nothing but in a log. A whole graph or an error is what is measured here.
        torch.compiler.reset()
        options: dict[str, Any] = {"freezing": True, "triton.cudagraphs": setup.device != "cpu"}
        compiled = torch.compile(trained(subject, setup), dynamic=False, fullgraph=True, options=options)
        return FixedSession(dict.fromkeys(setup.batches, compiled), subject, setup)

    def files(self, subject: Subject, setup: Setup) -> tuple[Path, ...]:
        """Return the checkpoint: what is compiled lies in a cache that any start may find empty."""
        return (weights_file(subject),)
