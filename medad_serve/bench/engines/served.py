"""The graphs of an artifact, each run by the very runtime that serves it."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

from medad_serve.artifact import GRAPHS, graph_of
from medad_serve.bench.engines.base import Engine, Session, Setup, Subject, register
from medad_serve.bench.engines.weights import missing_for_torch
from medad_serve.runtime import FloatArray, Outputs, lacking, open_runtime
from medad_serve.spec import Session as Options


class ServedSession(Session):
    """A runtime of :mod:`medad_serve.runtime`, which copies from the host and back."""

    def __init__(self, subject: Subject, setup: Setup, runtime: str, options: Options) -> None:
        self.runtime = open_runtime(
            subject.artifact,
            f"{runtime}/{setup.precision}",
            subject.names,
            threads=setup.threads,
            device=setup.device,
            session=options,
        )

    def run(self, batch: FloatArray, names: Sequence[str]) -> Outputs:
        """Run one batch."""
        return self.runtime.run(batch, names)

    def resident(self, batch: FloatArray) -> Callable[[], object] | None:
        """Return None: what serves always copies."""
        return None


class Served(Engine, ABC):
    """A runtime at every precision that the artifact was exported in."""

    served = True
    options: ClassVar[Options] = Options()
    """How the runtime is opened."""

    def precisions(self, device: str) -> tuple[str, ...]:
        """Return every precision that this runtime has graphs of."""
        return tuple(name.partition("/")[2] for name in GRAPHS if name.startswith(f"{self.key}/"))

    def missing(self, subject: Subject, setup: Setup) -> str | None:
        """Return what is not here."""
        return lacking(self.key) or subject.lacks(f"{self.key}/{setup.precision}")

    def open(self, subject: Subject, setup: Setup) -> Session:
        """Load the graph."""
        return ServedSession(subject, setup, self.key, self.options)

    def files(self, subject: Subject, setup: Setup) -> tuple[Path, ...]:
        """Return the graph."""
        return (subject.artifact / graph_of(f"{self.key}/{setup.precision}"),)


@register
class Onnx(Served):
    """onnxruntime on the CPU, as ``medad-serve predict`` and the handler open it."""

    name = "onnxruntime"
    key = "onnx"


@register
class OpenVino(Served):
    """OpenVINO on the CPU."""

    name = "OpenVINO"
    key = "openvino"


@register
class TorchScript(Served):
    """The frozen graph through torch.jit."""

    name = "TorchScript"
    key = "torchscript"
    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")

    def missing(self, subject: Subject, setup: Setup) -> str | None:
        """Return what is not here."""
        return super().missing(subject, setup) or missing_for_torch(setup.device)
