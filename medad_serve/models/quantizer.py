"""Vector quantisation: the nearest vector of a codebook takes the place of each encoder output."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Update = Literal["gradient", "ema"]

EPSILON = 1e-5
"""Laplace smoothing of the cluster sizes, as in the Sonnet reference implementation."""
POSITIONS = 8192
"""Positions whose distances to all codes are held at once: 16 MiB an item at 512 codes."""


class Quantized(NamedTuple):
    """What a batch became; scalars are over the whole batch."""

    quantized: Tensor
    """``(N, D, *S)``, exactly the codes' vectors; in training its gradient goes straight through to ``z``."""
    codes: Tensor
    """``(N, *S)`` int64; of equally near codes the lowest."""
    distances: Tensor
    """``(N, *S)``, mean squared difference between ``z`` and its code over the D channels: the alignment loss map."""
    loss: Tensor
    """Commitment loss, and the codebook's where it learns by gradient."""
    perplexity: Tensor
    """exp of the entropy of the codes of this batch, in nats: 1 (one code) to K (all alike)."""
    usage: Tensor
    """Share of the codebook that this batch uses."""

    def terms(self, recon_loss: Tensor) -> dict[str, Tensor]:
        """Return the named loss terms of a VQ-VAE: reconstruction and quantiser, with the state of the codebook."""
        return {
            "loss": recon_loss + self.loss,
            "recon_loss": recon_loss,
            "vq_loss": self.loss,
            "perplexity": self.perplexity,
            "codebook_usage": self.usage,
        }


class Quantizer(nn.Module):
    """Codebook of ``codes`` vectors of ``dim`` channels (van den Oord et al., Neural Discrete Representation Learning).

    ``ema`` moves each code to the running mean of what chose it (their appendix A.1), the codebook being a
    buffer; ``gradient`` minimises their eq. 3, the codebook being a parameter. A code that no position of
    ``revive_after`` training batches chose takes the place of a random encoder output (0: never); all begin as
    idle as that, so the first batch seeds them. Everything that moves is saved.
    """

    codebook: Tensor
    cluster_size: Tensor
    cluster_sum: Tensor
    idle: Tensor

    def __init__(
        self,
        codes: int,
        dim: int,
        *,
        commitment_cost: float = 0.25,
        update: Update = "ema",
        decay: float = 0.99,
        revive_after: int = 10,
    ) -> None:
        super().__init__()
        self.commitment_cost = commitment_cost
        self.update = update
        self.decay = decay
        self.revive_after = revive_after
        vectors = torch.empty(codes, dim).uniform_(-1 / codes, 1 / codes)
        if update == "gradient":
            self.codebook = nn.Parameter(vectors)
        else:
            self.register_buffer("codebook", vectors)
            # Size 1 and sum e: a code that nothing chooses stays where it is.
            self.register_buffer("cluster_size", torch.ones(codes))
            self.register_buffer("cluster_sum", vectors.clone())
        self.register_buffer("idle", torch.full((codes,), revive_after, dtype=torch.int64))

    def forward(self, z: Tensor) -> Quantized:
        """Quantise ``(N, D, *S)`` with any number of spatial axes; in training the codebook moves."""
        with _full_precision(z):
            z = z.float()
            if self.training and self.revive_after:
                self._revive(z.detach())
            codes = self._nearest(z)
            quantized = self.lookup(codes)
            loss = self.commitment_cost * F.mse_loss(z, quantized.detach())
            if self.update == "gradient":
                loss = loss + F.mse_loss(quantized, z.detach())
            distances = (z - quantized).square().mean(dim=1)
            counts = torch.zeros_like(self.idle, dtype=z.dtype).index_add(
                0, codes.flatten(), torch.ones_like(codes.flatten(), dtype=z.dtype)
            )
            share = counts / counts.sum()
            perplexity = torch.exp(-torch.xlogy(share, share).sum())
            usage = (counts > 0).to(z.dtype).mean()
            if self.training:
                quantized = quantized.detach() + (z - z.detach())
                self._move(z.detach(), codes, counts)
        return Quantized(quantized, codes, distances, loss, perplexity, usage)

    def lookup(self, codes: Tensor) -> Tensor:
        """Return the vectors ``(N, D, *S)`` of codes ``(N, *S)``."""
        return F.embedding(codes, self.codebook).movedim(-1, 1)

    def ties(self, z: Tensor) -> Tensor:
        """Return ``(N, *S)``: how nearly each position of ``(N, D, *S)`` took another code.

        The gap between its two smallest Euclidean distances as a share of the second, 0 where they tie.
        """
        with torch.no_grad():
            gaps = []
            for part in _positions(z.double()):
                nearest = torch.cdist(part, self.codebook.double(), compute_mode="donot_use_mm_for_euclid_dist")
                first, second = nearest.topk(2, dim=-1, largest=False).values.unbind(-1)
                gaps.append(torch.where(second > 0, (second - first) / second, 0))
            return torch.unflatten(torch.cat(gaps, dim=1), 1, z.shape[2:]).float()

    def _nearest(self, z: Tensor) -> Tensor:
        """Return the code of each position: the largest ``z.e - |e|^2 / 2``, which is the smallest distance.

        Both are taken from the middle of the codebook first: what they have in common costs digits. argmax
        returns the first of equal values, as does ONNX's ArgMax.
        """
        with torch.no_grad():
            middle = self.codebook.mean(dim=0)
            vectors = self.codebook - middle
            offset = -vectors.square().sum(dim=1) / 2
            parts = [F.linear(part - middle, vectors, offset).argmax(dim=-1) for part in _positions(z)]
            return torch.unflatten(torch.cat(parts, dim=1), 1, z.shape[2:])

    @torch.no_grad()
    def _move(self, z: Tensor, codes: Tensor, counts: Tensor) -> None:
        """Take one training step of the running means, and count idle steps."""
        self.idle.add_(1).masked_fill_(counts > 0, 0)
        if self.update == "ema":
            sums = torch.zeros_like(self.cluster_sum).index_add_(0, codes.flatten(), _rows(z))
            self.cluster_size.lerp_(counts, 1 - self.decay)
            self.cluster_sum.lerp_(sums, 1 - self.decay)
            total = self.cluster_size.sum()
            smoothed = (self.cluster_size + EPSILON) / (total + len(counts) * EPSILON) * total
            self.codebook.copy_(self.cluster_sum / smoothed[:, None])

    @torch.no_grad()
    def _revive(self, z: Tensor) -> None:
        """Put codes idle for too long on random positions of this batch."""
        dead = (self.idle >= self.revive_after).nonzero().squeeze(1)
        if not len(dead):
            return
        outputs = _rows(z)
        # Drawn on the CPU: the same seed revives alike on every device. Without repetition while rows last.
        rows = torch.randperm(len(outputs))[: len(dead)]
        rows = rows.repeat(-(-len(dead) // len(rows)))[: len(dead)]
        chosen = outputs[rows.to(outputs.device)]
        self.codebook[dead] = chosen
        self.idle[dead] = 0
        if self.update == "ema":
            self.cluster_sum[dead] = chosen
            self.cluster_size[dead] = 1


def _rows(z: Tensor) -> Tensor:
    """Return ``(N, D, *S)`` as one row a position."""
    return z.movedim(1, -1).flatten(0, -2)


def _positions(z: Tensor) -> Iterator[Tensor]:
    """Yield ``(N, D, *S)`` as ``(N, s, D)`` in pieces of few enough positions."""
    for part in torch.split(z.flatten(2), POSITIONS, dim=2):
        yield part.transpose(1, 2)


def _full_precision(z: Tensor) -> AbstractContextManager[object]:
    """Leave mixed precision: half the digits would choose other codes. Entered only where it is on, for exporters."""
    on = torch.is_autocast_enabled(z.device.type)
    return torch.autocast(z.device.type, enabled=False) if on else nullcontext()
