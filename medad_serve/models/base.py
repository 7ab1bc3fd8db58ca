"""What every detector offers, and the registry that trainer, exporter, tests and command line ask."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from medad_serve.errors import MedadError
from medad_serve.models.transfer import Transfer, load_fitting
from medad_serve.spec import Frozen, InputSpec, PrepSpec, validated

Shape = tuple[int, ...]


class Batch(NamedTuple):
    """Prepared items with what is known of them."""

    x: Tensor
    """``(N, C, *S)``."""
    labels: Tensor
    """``(N,)`` int64, 1 abnormal."""
    rows: Tensor
    """``(N,)`` int64, where each item stands in the prepared data."""

    @classmethod
    def of(cls, x: Tensor) -> Batch:
        """Return a batch of normals."""
        return cls(x, torch.zeros(len(x), dtype=torch.int64, device=x.device), torch.arange(len(x), device=x.device))


class Faults(NamedTuple):
    """Items with synthetic faults of known place and severity."""

    x: Tensor
    """``(N, C, *S)``."""
    mask: Tensor
    """``(N, 1, *S)``, 1 where an item was changed; all 0 in an item without fault."""
    severity: Tensor
    """``(N,)``, on the scale of the output ``severity``; 0 without fault."""


Log = Callable[[dict[str, float]], None]


class AnomalyModel(nn.Module, ABC):
    """A detector: ``forward`` scores, ``loss`` trains."""

    outputs: ClassVar[tuple[str, ...]] = ("score", "heatmap")
    """Names that ``forward`` returns, in the order in which an export lists them; ``score`` comes first."""
    supervised: ClassVar[bool] = False
    """Whether training learns from abnormal patients too; otherwise ``loss`` is given normals alone."""

    deviations: ClassVar[tuple[str, ...]] = ()
    """Outputs that count standard deviations from the mean of normals: near 0 they have no relative error, 1 is one."""

    logit: ClassVar[bool] = False
    """Whether ``score`` is a logit: evaluation then tells its calibration too, through a sigmoid."""

    @abstractmethod
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map prepared ``(N, C, *S)`` to named outputs: ``score (N,)``, ``heatmap (N, 1, *S)`` and its own."""

    @abstractmethod
    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the named loss terms of a batch, and figures worth a curve; ``loss`` is what is minimised."""

    def finish(self, train: Iterable[Tensor], held_out: Iterable[Tensor], log: Log) -> None:
        """Fit what scoring needs once the best weights are found (a prior, the scale of each score).

        ``train`` and ``held_out`` yield ``(N, C, *S)`` of normals on the model's device, as often as iterated,
        ``train`` augmented as in training; held-out normals chose the checkpoint and trained nothing. ``log``
        keeps a row of figures. What is found belongs into parameters or buffers: they are saved with the weights.
        By default nothing is done.
        """

    def fit_probability(self, held_out: Iterable[Batch], log: Log) -> None:
        """Fit what turns the score into a probability, on labelled items that trained nothing.

        Called after ``finish`` with the validation items, where healthy and abnormal ones are there. What is
        found belongs into buffers. By default nothing is done.
        """

    def with_faults(self, x: Tensor, seed: int) -> Faults | None:
        """Return items ``x (N, C, *S)`` with synthetic faults, the same for the same seed.

        None where the model makes none, which is the default. Evaluation measures on unseen normals by it.
        """
        return None

    def start_from(self, weights: dict[str, Tensor]) -> None:
        """Take the weights of the trained model that a run's ``init`` names; by default of the same model."""
        self.load_state_dict(weights)

    def start_partly(self, weights: dict[str, Tensor]) -> Transfer:
        """Take what fits of the weights of a file that ``init`` names, and tell what did.

        Raises MedadError, changing nothing, where they are of another architecture.
        """
        return load_fitting(self, weights)

    def check_values(self, values: tuple[float, float]) -> None:
        """Raise MedadError where items whose black and white are ``values`` cannot train this; by default any can."""
        return

    def ties(self, x: Tensor) -> dict[str, Tensor]:
        """Return, for each integer output, how nearly it is another one, in the shape of that output.

        The relative gap ``(second - first) / second`` between the two smallest distances: where it is within
        the parity tolerance, an export may choose the other code.
        """
        return {}


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
    train: dict[str, Any] = field(default_factory=dict)
    """Training settings that are this model's own, over the general defaults."""
    quick: tuple[str, ...] = ()
    """``key=value`` of a run that ends within minutes on two cores (quickstart)."""
    trial_size: tuple[int, ...] | None = None
    """Size in which the conformance suite tries it, where its own is too large for that."""
    trial_settings: dict[str, Any] = field(default_factory=dict)
    builds_on: str | None = None
    """The model whose trained run ``init`` must name."""
    adopt: Callable[[dict[str, Any]], dict[str, Any]] = dict
    """Settings that follow from those of that run."""
    calibration: dict[str, Any] = field(default_factory=dict)
    """Calibration settings that are this model's own, over the general defaults."""

    def shape(self, prep: PrepSpec) -> Shape:
        """Return (C, *S) of one prepared item."""
        return (self.channels, *prep.size)

    def build(self, prep: PrepSpec | None = None, settings: dict[str, Any] | None = None) -> AnomalyModel:
        """Build the module for a preparation, with ``settings`` over the defaults."""
        checked = validated(self.settings, settings or {}, f"settings of model {self.name}")
        return self.builder(self.shape(prep or self.prep), checked)

    def trial(self) -> Family:
        """Return the same model at the size in which the conformance suite tries it."""
        prep = self.prep.model_copy(update={"size": self.trial_size or self.prep.size})
        settings = validated(self.settings, self.trial_settings, f"trial settings of model {self.name}")
        return replace(self, prep=prep, builder=lambda shape, _: self.builder(shape, settings))


_families: dict[str, Family] = {}


def register(
    name: str,
    *,
    settings: type[Frozen],
    phantom: str,
    prep: PrepSpec,
    input: InputSpec | None = None,
    channels: int = 1,
    train: dict[str, Any] | None = None,
    quick: tuple[str, ...] = (),
    trial_size: tuple[int, ...] | None = None,
    trial_settings: dict[str, Any] | None = None,
    builds_on: str | None = None,
    adopt: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    calibration: dict[str, Any] | None = None,
) -> Callable[[Callable[[Shape, Any], AnomalyModel]], Callable[[Shape, Any], AnomalyModel]]:
    """Register a builder ``(shape, settings) -> module`` under the name that the command line takes."""

    def add(builder: Callable[[Shape, Any], AnomalyModel]) -> Callable[[Shape, Any], AnomalyModel]:
        if name in _families:
            raise ValueError(f"model {name} is registered twice")
        summary = (builder.__doc__ or "").strip().split("\n")[0]
        _families[name] = Family(
            name,
            summary,
            settings,
            builder,
            input or InputSpec(),
            prep,
            channels,
            phantom,
            train or {},
            quick,
            trial_size,
            trial_settings or {},
            builds_on,
            adopt,
            calibration or {},
        )
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
