"""What every engine offers, what it is given to run, and the registry that asks by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, Protocol

from medad_serve.errors import MedadError
from medad_serve.runtime import FloatArray, Outputs
from medad_serve.spec import Frozen, Manifest, OutputSpec

EAGER = "PyTorch eager"
"""Name of the engine that the others are held against."""
RUN_NEEDED = "the artifact lies in no run, and only a run has the trained weights"


class Subject(Frozen):
    """The model to run, as plain data: a process of its own is told it too."""

    artifact: Path
    run: Path | None
    """The run that the artifact lies in."""
    scratch: Path
    """Where an engine puts what it builds of the model."""
    shape: tuple[int, ...]
    """``(C, *S)`` of one item."""
    outputs: tuple[OutputSpec, ...]
    exported: tuple[str, ...]
    """Runtime and precision of every graph of the artifact, e.g. ``onnx/float32``."""

    @classmethod
    def of(cls, artifact: Path, run: Path | None, scratch: Path, manifest: Manifest) -> Subject:
        """Return what an artifact is."""
        return cls(
            artifact=artifact,
            run=run,
            scratch=scratch,
            shape=manifest.input_shape,
            outputs=manifest.outputs,
            exported=tuple(sorted(manifest.calibrations)),
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return tuple(output.name for output in self.outputs)

    def lacks(self, variant: str) -> str | None:
        """Return why there is no graph of a variant, None where there is one."""
        if variant in self.exported:
            return None
        return f"not in the artifact: medad-serve export RUN --format {variant}, if its gate accepts it"


class Setup(Frozen):
    """How an engine is opened."""

    precision: str = "float32"
    threads: int = 1
    device: str = "cpu"
    batches: tuple[int, ...] = (1,)
    """Sizes that will be asked for: some engines plan their memory for them."""


class Session(Protocol):
    """An opened engine."""

    def run(self, batch: FloatArray, names: Sequence[str]) -> Outputs:
        """Map float32 ``(N, C, *S)`` to the outputs asked for, both in the memory of the host."""
        ...

    def resident(self, batch: FloatArray) -> Callable[[], object] | None:
        """Return a call whose input and outputs lie in the memory of the device, and that returns when it is done.

        None where the device is the host: nothing is copied there.
        """
        ...


class Engine(ABC):
    """Something that runs a model. A subclass in a file of this package, registered, is all that adding one takes."""

    name: ClassVar[str]
    key: ClassVar[str]
    """Runtime of the artifact whose graph it reads; ``run`` reads the trained weights."""
    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    served: ClassVar[bool] = False
    """Whether it is what answers requests; others show what else there is."""

    def precisions(self, device: str) -> tuple[str, ...]:
        """Return the precisions that it knows on a device, by default float32."""
        return ("float32",)

    @abstractmethod
    def missing(self, subject: Subject, setup: Setup) -> str | None:
        """Return what it takes to run the subject that is not here, None where nothing is missing."""

    def build(self, subject: Subject, setup: Setup) -> None:
        """Make what :meth:`open` reads, once and in advance; by default nothing."""
        return

    @abstractmethod
    def open(self, subject: Subject, setup: Setup) -> Session:
        """Load the model, ready to answer."""

    @abstractmethod
    def files(self, subject: Subject, setup: Setup) -> tuple[Path, ...]:
        """Return the files that :meth:`open` reads the model from."""


_engines: dict[str, Engine] = {}


def register(made: type[Engine]) -> type[Engine]:
    """Register an engine under its name."""
    if made.name in _engines:
        raise ValueError(f"engine {made.name} is registered twice")
    _engines[made.name] = made()
    return made


def engines() -> dict[str, Engine]:
    """Return every registered engine by name, the one that others are held against first."""
    return dict(sorted(_engines.items(), key=lambda item: (item[0] != EAGER, item[0].lower())))


def engine(name: str) -> Engine:
    """Return one engine, or say which there are."""
    try:
        return _engines[name]
    except KeyError:
        raise MedadError(f"there is no engine {name!r}", f"Choose one of: {', '.join(engines())}") from None
