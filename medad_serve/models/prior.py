"""An autoregressive prior over code maps: a gated PixelCNN (van den Oord et al., NeurIPS 2016).

How likely a normal image has these codes, each given those above it and to its left: the latent negative
log-likelihood by which the OCTA study (Bioengineering 2024, 11(7):682) scores.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BATCH = 16
"""Code maps an optimizer step."""
FIRST, LATER = 3, 1
"""Reach in codes of the first layer, which does not see the code itself, and of each later one."""


def _gate(features: Tensor) -> Tensor:
    signal, gate = features.chunk(2, dim=1)
    return signal.tanh() * gate.sigmoid()


class _GatedLayer(nn.Module):
    """One layer of both stacks: ``above`` holds what lies in earlier rows, ``left`` also what lies left in the row.

    Causal by padding on one side rather than by masks on weights: no weight is stored that must stay unused.
    """

    def __init__(self, width: int, reach: int, *, first: bool, dropout: float) -> None:
        super().__init__()
        own = 0 if first else 1
        self.first = first
        self.above_padding = (reach, reach, reach, 0)
        self.left_padding = (reach, 0, 0, 0)
        self.above = nn.Conv2d(width, 2 * width, (reach + own, 2 * reach + 1))
        self.left = nn.Conv2d(width, 2 * width, (1, reach + own))
        self.join = nn.Conv2d(2 * width, 2 * width, 1)
        self.out = nn.Conv2d(width, width, 1)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, above: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
        from_above = self.above(F.pad(above, self.above_padding))
        from_left = self.left(F.pad(left, self.left_padding))
        if self.first:  # the last output would belong to the row below, and to the column right of the map
            from_above, from_left = from_above[:, :, :-1], from_left[..., :-1]
        out = self.out(self.dropout(_gate(from_left + self.join(from_above))))
        return _gate(from_above), out if self.first else left + out


class CodePrior(nn.Module):
    """Gated PixelCNN over maps of ``codes`` codes on a grid ``shape`` (h, w).

    Rows and columns have embeddings of their own: what is normal in one place need not be in another.
    """

    def __init__(self, codes: int, shape: tuple[int, int], *, width: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, width)
        self.row = nn.Parameter(torch.zeros(width, shape[0], 1))
        self.column = nn.Parameter(torch.zeros(width, 1, shape[1]))
        self.layers = nn.ModuleList(
            _GatedLayer(width, LATER if i else FIRST, first=not i, dropout=dropout) for i in range(layers)
        )
        self.head = nn.Sequential(nn.ReLU(), nn.Conv2d(width, width, 1), nn.ReLU(), nn.Conv2d(width, codes, 1))

    def forward(self, codes: Tensor) -> Tensor:
        """Return logits ``(N, codes, h, w)``; those of a place depend on earlier places alone (rows first)."""
        above = left = self.embedding(codes).movedim(-1, 1)
        for layer in self.layers:
            above, left = layer(above, left)
        logits: Tensor = self.head(left + self.row + self.column)
        return logits

    def nll(self, codes: Tensor) -> Tensor:
        """Return the negative log-likelihood ``(N, h, w)`` in nats of each code given the earlier ones."""
        likelihood: Tensor = self(codes).log_softmax(dim=1)
        return -likelihood.gather(1, codes[:, None]).squeeze(1)


def mean_nll(prior: CodePrior, maps: Tensor, device: torch.device) -> float:
    """Return the mean negative log-likelihood in nats a code of maps ``(N, h, w)``, of any integer type."""
    with torch.no_grad():
        parts = [prior.nll(part.to(device, torch.int64)).mean(dim=(1, 2)) for part in torch.split(maps, BATCH)]
        return float(torch.cat(parts).double().mean())


def fit_prior(
    prior: CodePrior,
    train: Tensor,
    held_out: Tensor,
    *,
    epochs: int,
    learning_rate: float,
    patience: int,
    log: Callable[[dict[str, float]], None],
) -> None:
    """Train on code maps ``(N, h, w)`` until the held-out likelihood has not risen for ``patience`` epochs.

    The weights of the best epoch stay, frozen and in evaluation mode. The same maps and initial weights give the
    same prior; the caller's random state is left as it was.
    """
    device = prior.row.device
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(0)
        prior.requires_grad_(True)
        optimizer = torch.optim.AdamW(prior.parameters(), learning_rate)
        best, waited = float("inf"), 0
        kept = {name: value.clone() for name, value in prior.state_dict().items()}
        for epoch in count(1):
            prior.train()
            total = 0.0
            for rows in torch.split(torch.randperm(len(train)), BATCH):
                loss = prior.nll(train[rows].to(device, torch.int64)).mean()
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                total += loss.item() * len(rows)
            prior.eval()
            found = mean_nll(prior, held_out, device)
            log({"prior_epoch": epoch, "prior_train_nll": total / len(train), "prior_held_out_nll": found})
            if found < best:
                best, waited = found, 0
                kept = {name: value.clone() for name, value in prior.state_dict().items()}
            else:
                waited += 1
            if epoch == epochs or waited == patience:
                break
    prior.load_state_dict(kept)
    prior.requires_grad_(False)
