"""A logit as the probability that it claims to be: temperature and offset fitted on held-out items."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BINS = 15
"""Of the calibration error (Guo et al., ICML 2017)."""
STEPS = 100
SHARPEST, SOFTEST = 0.02, 50.0
"""Temperatures beyond say that the logit tells nothing, or that the items are too few."""


def smoothed_targets(labels: Tensor) -> Tensor:
    """Return what Platt (1999) fits in place of 0 and 1, ``(N,)`` float64.

    ``1 / (N0 + 2)`` and ``(N1 + 1) / (N1 + 2)``: where the classes are told apart without a fault, 0 and 1
    would ask for a temperature of 0.
    """
    abnormal = labels > 0
    ones = abnormal.sum()
    zeros = len(labels) - ones
    return torch.where(abnormal, (ones + 1) / (ones + 2), 1 / (zeros + 2)).double()


def prior_weights(labels: Tensor, prevalence: float | None) -> Tensor:
    """Return the weight of each item ``(N,)`` under which ``prevalence`` are abnormal; None weighs all alike."""
    abnormal = labels > 0
    if prevalence is None:
        return torch.ones(len(labels), dtype=torch.float64)
    share = abnormal.double().mean()
    return torch.where(abnormal, prevalence / share, (1 - prevalence) / (1 - share)).double()


def calibration_error(probability: Tensor, labels: Tensor, weight: Tensor | None = None) -> float:
    """Return the expected calibration error of ``probability (N,)`` of being abnormal, over 15 bins of equal width.

    The gap between mean probability and share of abnormal items in a bin, averaged by the weight of the bins;
    without weights it is torchmetrics' ``binary_calibration_error``, which knows none.
    """
    p, y = probability.double(), labels.double()
    weight = torch.ones_like(p) if weight is None else weight
    bins = (p * BINS).long().clamp(max=BINS - 1)
    gaps = torch.zeros(BINS, dtype=torch.float64).index_add(0, bins, weight * (p - y))
    return float(gaps.abs().sum() / weight.sum())


def negative_log_likelihood(logit: Tensor, labels: Tensor, weight: Tensor | None = None) -> float:
    """Return the mean of ``-log p(label)`` in nats of logits ``(N,)``."""
    return float(F.binary_cross_entropy_with_logits(logit.double(), labels.double(), weight))


class Temperature(nn.Module):
    """``sigmoid(logit / temperature + offset)``, with both in buffers; 1 and 0 until they are fitted.

    Temperature scaling (Guo et al., ICML 2017) keeps the ranking and mends confidence. The offset beside it
    (Platt, 1999) mends the prior: a loss in which both classes weigh the same teaches a logit of a world where
    half of all are abnormal.
    """

    temperature: Tensor
    offset: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("temperature", torch.tensor(1.0))
        self.register_buffer("offset", torch.tensor(0.0))

    def scaled(self, logit: Tensor) -> Tensor:
        """Return the logit of the probability, in the shape of ``logit``."""
        return logit / self.temperature + self.offset

    def forward(self, logit: Tensor) -> Tensor:
        """Return the probability, in the shape of ``logit``."""
        return self.scaled(logit).sigmoid()

    @torch.no_grad()
    def fit(self, logit: Tensor, labels: Tensor, prevalence: float | None = None) -> dict[str, float]:
        """Find both on logits and labels ``(N,)`` of items that trained nothing; needs both classes.

        They minimise the negative log-likelihood, weighted so that ``prevalence`` of the items are abnormal
        (None: as many as there are). Returns figures from before and after, under the same weights.
        """
        values, labels = logit.detach().cpu().double(), labels.detach().cpu()
        weight = prior_weights(labels, prevalence)
        self.temperature.fill_(1)
        self.offset.fill_(0)
        before = self._figures(values, labels, weight, "before")
        slope, offset = _fitted(values, smoothed_targets(labels), weight)
        self.temperature.fill_(1 / slope)
        self.offset.fill_(offset)
        found = {"temperature": float(self.temperature), "offset": float(self.offset)}
        return {**found, **before, **self._figures(values, labels, weight, "after")}

    def _figures(self, logit: Tensor, labels: Tensor, weight: Tensor, when: str) -> dict[str, float]:
        scaled = self.scaled(logit)
        return {
            f"ece_{when}": calibration_error(scaled.sigmoid(), labels, weight),
            f"nll_{when}": negative_log_likelihood(scaled, labels, weight),
        }


@torch.enable_grad()
def _fitted(logit: Tensor, target: Tensor, weight: Tensor) -> tuple[float, float]:
    """Return slope (1 / temperature, positive) and offset of least cross-entropy, by L-BFGS over log slope."""
    place = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    low, high = -math.log(SOFTEST), -math.log(SHARPEST)
    optimizer = torch.optim.LBFGS([place], max_iter=STEPS, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        scaled = logit * place[0].clamp(low, high).exp() + place[1]
        loss = F.binary_cross_entropy_with_logits(scaled, target, weight)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return float(place[0].detach().clamp(low, high).exp()), float(place[1].detach())
