"""Classes that weigh the same in a loss, however rare one of them is."""

from __future__ import annotations

import torch
from torch import Tensor

SHARE_DECAY = 0.99
"""Of the running share of abnormal items among those that train."""
RAREST = 0.01
"""Share below which a class gets no heavier."""


def follow(share: Tensor, labels: Tensor) -> None:
    """Move the running ``share ()`` of abnormal items towards that of a batch, in place."""
    share.lerp_(labels.to(share.dtype).mean(), 1 - SHARE_DECAY)


def weights(labels: Tensor, share: Tensor) -> Tensor:
    """Return the weight of each item ``(N,)``: with them both classes add the same to a mean, which stays its size."""
    share = share.clamp(RAREST, 1 - RAREST)
    return torch.where(labels > 0, 0.5 / share, 0.5 / (1 - share))
