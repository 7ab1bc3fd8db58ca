"""Random numbers for a batch: from one stream, or from a stream of each item's own."""

from __future__ import annotations

import torch
from torch import Tensor


class Draws:
    """Uniform numbers ``(N, ...)`` on the CPU, so that every device is given the same.

    Streams of their own make what happens to an item independent of its neighbours.
    """

    def __init__(self, count: int, streams: torch.Generator | list[torch.Generator] | None = None) -> None:
        self.count, self.streams = count, streams

    @classmethod
    def of_rows(cls, rows: Tensor) -> Draws:
        """Give each of ``rows (N,)`` its stream: the same numbers whenever and wherever it is drawn."""
        return cls(len(rows), [torch.Generator().manual_seed(row) for row in rows.tolist()])

    def uniform(self, *shape: int) -> Tensor:
        """Return ``(N, *shape)`` in [0, 1)."""
        if isinstance(self.streams, list):
            return torch.stack([torch.rand(shape, generator=stream) for stream in self.streams])
        return torch.rand((self.count, *shape), generator=self.streams)

    def between(self, low: float, high: float, *shape: int) -> Tensor:
        """Return ``(N, *shape)`` in [low, high)."""
        return low + (high - low) * self.uniform(*shape)

    def whole(self, low: int, high: int) -> Tensor:
        """Return whole numbers ``(N,)`` from ``low`` to ``high``."""
        return low + (self.uniform() * (high - low + 1)).long()

    def chance(self, probability: float) -> Tensor:
        """Return ``(N,)`` that are true with ``probability``."""
        return self.uniform() < probability

    def others(self) -> Tensor:
        """Return ``(N,)``: for each item another one of the batch, itself where it is alone."""
        step = self.whole(1, max(1, self.count - 1))
        return (torch.arange(self.count) + step) % self.count
