"""Values on the scale of normals: how many standard deviations each lies above their mean."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from pydantic import AfterValidator
from torch import Tensor, nn

from medad_serve.models.smoothing import in_a_row

LEAST_DEVIATION = 1e-2
"""Of a kind of value, as a share of its mean. Below, what float32 rounds by (1e-6 of a sum, each runtime another way)
would count as 1e-4 deviations and more, beyond what an export may differ by."""


class ZScore(nn.Module):
    """Mean and deviation of ``n`` kinds of values, 0 and 1 until ``Moments`` are taken; saved with the weights."""

    mean: Tensor
    std: Tensor

    def __init__(self, n: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n))
        self.register_buffer("std", torch.ones(n))

    def forward(self, values: Tensor) -> Tensor:
        """Standardise ``(N, n, *S)``."""
        shape = (-1, *[1] * (values.ndim - 2))
        return (values - self.mean.view(shape)) / self.std.view(shape)

    def one(self, index: int, values: Tensor) -> Tensor:
        """Standardise values of one kind, ``(N, 1, *S)``."""
        mean, std = (part[index : index + 1] for part in (self.mean, self.std))
        return torch.unflatten((in_a_row(values) - mean) / std, 1, values.shape[1:])

    def take(self, found: Moments) -> None:
        """Standardise by what was found on normals from now on.

        A deviation of 0 counts as 1, any other as ``LEAST_DEVIATION`` of the mean at least.
        """
        mean = found.sum / found.count
        std = (found.squares / found.count - mean.square()).clamp(min=0).sqrt()
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std > 0, torch.maximum(std, LEAST_DEVIATION * mean.abs()), 1))


class Moments:
    """Sums of values and of their squares, in float64."""

    def __init__(self) -> None:
        self.count, self.sum, self.squares = 0, torch.zeros(()), torch.zeros(())

    @torch.no_grad()
    def add(self, values: Tensor) -> None:
        """Count every item and place of ``(N, n, *S)``."""
        rows = values.double().movedim(1, -1).flatten(0, -2)
        self.count += len(rows)
        self.sum = self.sum + rows.sum(dim=0)
        self.squares = self.squares + rows.square().sum(dim=0)


@torch.no_grad()
def take_moments(found: Iterable[tuple[Tensor, Tensor]], scores: ZScore, maps: ZScore) -> int:
    """Standardise by batches of scores ``(N, n)`` and maps ``(N, n, *S)`` of normals; return how many items."""
    of_scores, of_maps = Moments(), Moments()
    for raw_scores, raw_maps in found:
        of_scores.add(raw_scores)
        of_maps.add(raw_maps)
    if of_scores.count:
        scores.take(of_scores)
        maps.take(of_maps)
    return of_scores.count


def some_of(known: Sequence[str]) -> AfterValidator:
    """Return the check of a setting that names some of the scores, each once."""

    def check(chosen: tuple[str, ...]) -> tuple[str, ...]:
        if not chosen or len(set(chosen)) != len(chosen):
            raise ValueError(f"must name one or more of {', '.join(known)}, each once")
        return chosen

    return AfterValidator(check)
