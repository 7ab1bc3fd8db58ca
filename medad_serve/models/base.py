"""What every detector offers, and the registry that trainer, exporter, tests and command line ask."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from medad_serve.errors import MedadError
from medad_serve.spec import Frozen, InputSpec, PrepSpec, validated

Shape = tuple[int, ...]


class AnomalyModel(nn.Module, ABC):
    """A detector: ``forward`` scores, ``loss`` trains."""

    outputs: ClassVar[tuple[str, ...]] = ("score", "heatmap")
    """Names that ``forward`` returns, in the order in which an export lists them; ``score`` comes first."""

    @abstractmethod
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map prepared ``(N, C, *S)`` to named outputs: ``score (N,)``, ``heatmap (N, 1, *S)`` and its own."""

    @abstractmethod
    def loss(self, x: Tensor) -> dict[str, Tensor]:
        """Return the named loss terms of a batch of normals; ``loss`` is what is minimised."""


@dataclass(frozen=True)
class Family:
    """One registered model: its settings, how to build it and what it was made to read."""

    name: str
    summary: str
    settings: type[Frozen]
    builder: Callable[[Shape, Any], AnomalyModel]
    input: InputSpec
    prep: PrepSpec
    channels: int
    phantom: str
    """Name of the synthetic data set that suits it."""

    def shape(self, prep: PrepSpec) -> Shape:
        """Return (C, *S) of one prepared item."""
        return (self.channels, *prep.size)

    def build(self, prep: PrepSpec | None = None, settings: dict[str, Any] | None = None) -> AnomalyModel:
        """Build the module for a preparation, with ``settings`` over the defaults."""
        checked = validated(self.settings, settings or {}, f"settings of model {self.name}")
        return self.builder(self.shape(prep or self.prep), checked)


_families: dict[str, Family] = {}


def register(
    name: str,
    *,
    settings: type[Frozen],
    phantom: str,
    prep: PrepSpec,
    input: InputSpec | None = None,
    channels: int = 1,
) -> Callable[[Callable[[Shape, Any], AnomalyModel]], Callable[[Shape, Any], AnomalyModel]]:
    """Register a builder ``(shape, settings) -> module`` under the name that the command line takes."""

    def add(builder: Callable[[Shape, Any], AnomalyModel]) -> Callable[[Shape, Any], AnomalyModel]:
        if name in _families:
            raise ValueError(f"model {name} is registered twice")
        summary = (builder.__doc__ or "").strip().split("\n")[0]
        _families[name] = Family(name, summary, settings, builder, input or InputSpec(), prep, channels, phantom)
        return builder

    return add


def families() -> dict[str, Family]:
    """Return every registered model by name."""
    return dict(sorted(_families.items()))


def family(name: str) -> Family:
    """Return one registered model, or say which there are."""
    try:
        return _families[name]
    except KeyError:
        raise MedadError(f"there is no model {name!r}", f"Choose one of: {', '.join(families())}") from None


def count_parameters(model: nn.Module) -> int:
    """Count trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def device_for(choice: str) -> torch.device:
    """Return the device that ``auto``, ``cpu`` or ``cuda`` names."""
    if choice == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if choice.startswith("cuda") and not torch.cuda.is_available():
        raise MedadError("no CUDA device was found", "Use device=cpu or device=auto")
    return torch.device(choice)
