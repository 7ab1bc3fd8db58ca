"""Weights made elsewhere, taken over as far as they fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from medad_serve.errors import MedadError

ENOUGH = 0.75
"""Share of the tensors, of the file and of the part of the model that they are for, which must fit."""
COLOURS = 3
NAMED = 4
"""Tensors that a line names; the rest are counted."""
State = dict[str, Tensor]


@dataclass(frozen=True)
class Transfer:
    """What became of the weights of a file; names are those of the model, of ``unused`` those of the file."""

    loaded: tuple[str, ...]
    of: int
    """Tensors of the part of the model that the file is for."""
    summed: tuple[str, ...]
    """Of those loaded: first convolutions of three colours, here of another number of channels."""
    reshaped: tuple[str, ...]
    """Left as they were, of another shape in the file, e.g. the head of other classes: name and both shapes."""
    missing: tuple[str, ...]
    """Left as they were, not in the file."""
    unused: tuple[str, ...]

    def lines(self) -> Iterator[str]:
        """Say what was loaded, what was not and why, a line each."""
        yield f"loaded {len(self.loaded)} of {self.of} tensors"
        reasons = {
            "colour channels were summed into this model's": self.summed,
            "of another shape, kept as they were": self.reshaped,
            "not in the file, kept as they were": self.missing,
            "in the file, without a place in this model": self.unused,
        }
        for reason, names in reasons.items():
            if names:
                rest = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
                yield f"{reason} ({len(names)}): {', '.join(names[:NAMED])}{rest}"


def load_fitting(model: nn.Module, weights: State) -> Transfer:
    """Load what fits by name and shape, in place; raises MedadError, changing nothing, where that is too little.

    Names may stand below a prefix on either side (``module.``, ``backbone.``; the model's own parts): the pair
    under which most tensors find their place is taken. A first convolution of three colours is summed over them:
    it then gives for a gray image what it gave for that image in all three.
    """
    own = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
    given = {name: value for name, value in weights.items() if value.is_floating_point()}
    theirs, ours = _prefixes(own, given)
    here = {name.removeprefix(ours): value for name, value in own.items() if name.startswith(ours)}
    there = {name.removeprefix(theirs): value for name, value in given.items() if name.startswith(theirs)}
    fitting, summed = {}, []
    for name in here.keys() & there.keys():
        if there[name].shape == here[name].shape:
            fitting[name] = there[name]
        elif _is_first_convolution(there[name], here[name]):
            fitting[name] = _summed(there[name], here[name].shape[1])
            summed.append(ours + name)
    if len(fitting) < ENOUGH * len(here) or len(fitting) < ENOUGH * len(given):
        raise MedadError(
            f"the weights are of another architecture: {len(fitting)} of their {len(given)} tensors fit "
            f"{len(here)} of this model",
            "Name weights of the same network",
        )
    model.load_state_dict({ours + name: value for name, value in fitting.items()}, strict=False)
    both = here.keys() & there.keys() - fitting.keys()
    return Transfer(
        loaded=tuple(sorted(ours + name for name in fitting)),
        of=len(here),
        summed=tuple(sorted(summed)),
        reshaped=tuple(f"{ours}{n} {_size(there[n])} in the file, {_size(here[n])} here" for n in here if n in both),
        missing=tuple(ours + name for name in here if name not in there),
        unused=tuple(name for name in given if name.removeprefix(theirs) not in here),
    )


def _prefixes(own: State, given: State) -> tuple[str, str]:
    """Return the prefixes of the file's and of the model's names under which most names and shapes agree."""

    def agreeing(pair: tuple[str, str]) -> int:
        theirs, ours = pair
        return sum(
            own[place].shape[:1] == value.shape[:1]
            for name, value in given.items()
            if name.startswith(theirs) and (place := ours + name.removeprefix(theirs)) in own
        )

    return max(((a, b) for a in _openings(given) for b in _openings(own)), key=agreeing)


def _openings(state: State) -> list[str]:
    """Return no prefix, and each that the first parts of the names make."""
    parts = [name.split(".") for name in state]
    found = {f"{'.'.join(p[:depth])}." for p in parts for depth in (1, 2) if len(p) > depth}
    return ["", *sorted(found)]


def _is_first_convolution(there: Tensor, here: Tensor) -> bool:
    same = there.ndim == here.ndim >= 4 and there.shape[0] == here.shape[0] and there.shape[2:] == here.shape[2:]
    return same and there.shape[1] == COLOURS


def _summed(weight: Tensor, channels: int) -> Tensor:
    """Turn the kernel ``(K, 3, ...)`` of three colours into one of ``channels`` that hold the same image each."""
    return (weight.sum(dim=1, keepdim=True) / channels).repeat_interleave(channels, dim=1)


def _size(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "1"
