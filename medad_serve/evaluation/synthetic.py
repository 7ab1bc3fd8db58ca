"""Graded synthetic faults on healthy items that the model never saw: the only faults whose severity is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from medad_serve.evaluation.scoring import HEATMAP, Scored
from medad_serve.evaluation.subject import Subject
from medad_serve.localization import PixelTally, bin_edges, pixel_figures
from medad_serve.metrics import Floats, Mask, separations
from medad_serve.models import AnomalyModel
from medad_serve.runtime import Selection, fitting_batch
from medad_serve.severity import mean_error, rank_correlation

ITEMS = 200
"""Items that faults are made on; of fewer healthy ones each is taken several times, with another fault."""
SEED = 2024


@dataclass(frozen=True)
class Synthetic:
    """Healthy items with faults."""

    scores: Floats
    severity: Floats
    """As it was made, ``(M,)``."""
    predicted: Floats | None
    """As the model says, where it does."""
    faulted: Mask
    """Which items were changed."""
    patients: tuple[str, ...]
    tally: PixelTally
    """Of the heatmaps at the prepared size."""


def make_faults(subject: Subject, scored: Scored, model: AnomalyModel | None = None) -> Synthetic | None:
    """Score healthy items of the data with faults that ``model`` makes; None where it makes none.

    By default the subject's own family makes them, which takes no weights.
    """
    model = model or subject.untrained()
    normals = scored.rows[scored.items.labels == 0]
    if model is None or type(model).with_faults is AnomalyModel.with_faults or not len(normals):
        return None
    rounds = -(-ITEMS // len(normals))
    rows = np.tile(normals, rounds)[np.linspace(0, rounds * len(normals) - 1, ITEMS).astype(int)]
    names = [n for n in ("score", "severity", HEATMAP) if n in subject.outputs]
    chosen, size = Selection(subject.data.tensor, rows), fitting_batch(subject.data.tensor.shape[1:])
    outputs: dict[str, list[Any]] = {name: [] for name in (*names, "true", "mask")}
    for start in range(0, len(rows), size):
        faults = model.with_faults(torch.from_numpy(chosen[start : start + size]), SEED + start)
        if faults is None:
            return None
        found = subject.runtime.run(faults.x.numpy(), names)
        found |= {"true": faults.severity.numpy(), "mask": faults.mask.numpy() > 0}
        for name, values in found.items():
            outputs[name].append(values)
    joined = {name: np.concatenate(parts) for name, parts in outputs.items()}
    on = np.asarray(joined["mask"].reshape(len(rows), -1).any(axis=1), np.bool_)
    tally = PixelTally(bin_edges(joined[HEATMAP]))
    for heatmap, mask in zip(joined[HEATMAP][:, 0], joined["mask"][:, 0], strict=True):
        tally.add(heatmap, mask)
    return Synthetic(
        scores=joined["score"].astype(np.float64),
        severity=joined["true"].astype(np.float64),
        predicted=joined["severity"].astype(np.float64) if "severity" in joined else None,
        faulted=on,
        patients=tuple(subject.data.patients[r] for r in rows),
        tally=tally,
    )


def synthetic_section(scored: Scored, made: Synthetic) -> dict[str, Any]:
    """Return how faulted items stand out from the same healthy ones as they are, where and how severe they are."""
    on, healthy = made.faulted, scored.items.labels == 0
    labels = np.concatenate([np.zeros(int(healthy.sum()), np.int64), np.ones(int(on.sum()), np.int64)])
    scores = np.concatenate([scored.items.scores[healthy], made.scores[on]])
    faulted = tuple(p for p, is_on in zip(made.patients, on, strict=True) if is_on)
    owners = (*(p for p, is_healthy in zip(scored.items.patients, healthy, strict=True) if is_healthy), *faulted)
    pixel = pixel_figures(made.tally, made.faulted.astype(int).tolist(), made.patients)
    out: dict[str, Any] = {
        "normal": int(healthy.sum()),
        "faulted": int(on.sum()),
        "auroc": separations({"score": scores}, labels, owners)["score"],
        "pixel_auroc": pixel["auroc"],
        "aupro": pixel["aupro"],
    }
    if made.predicted is not None:
        out["severity"] = {
            "mae": mean_error(made.predicted[on], made.severity[on], faulted),
            "spearman": rank_correlation(made.predicted[on], made.severity[on], faulted),
        }
    return out
