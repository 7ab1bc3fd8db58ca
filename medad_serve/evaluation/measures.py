"""Every figure of an evaluation: as JSON with intervals, and as a table of every level and policy."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any

import numpy as np

from medad_serve.calibration import HeldOut
from medad_serve.evaluation.exporting import short
from medad_serve.evaluation.scoring import Scored
from medad_serve.evaluation.studies import Studied, sections, study
from medad_serve.evaluation.subject import Subject
from medad_serve.metrics import Floats, Mask, auprc, auroc, decision_figures, decisions, only, separations, summarise

COLUMNS = ("accuracy", "auroc", "auprc", "f1", "precision", "recall", "sensitivity", "specificity")


def measure(subject: Subject, scored: Scored, policy: str, studied: Studied | None = None) -> dict[str, Any]:
    """Return every figure of ``metrics.json``: both levels, overall and per class, beside trivial baselines.

    ``studied`` is found where it is not given. Sections that model or data have nothing for are absent.
    """
    aggregation = subject.calibration.aggregation
    of_item, of_patient = subject.cutoffs(policy)
    items = scored.items
    patients, classes = scored.by_patient(aggregation)

    def alone(candidates: dict[str, Floats]) -> dict[str, Any]:
        found = separations(candidates, items.labels, items.patients)
        return {name: {"auroc": figure} for name, figure in found.items()}

    return {
        "runtime": subject.runtime_name,
        "split": subject.split,
        "excluded_seen": sum(short(digest) in subject.seen for digest in subject.data.digests),
        "policy": policy,
        "unit": subject.unit,
        "calibration": {"method": subject.calibration.method, "n": subject.calibration.item.n},
        "aggregation": aggregation,
        "data_fingerprint": subject.data.fingerprint,
        "faults": len(subject.data.faults),
        subject.unit: {"cutoff": of_item, **summarise(items, of_item, scored.classes)},
        "patient": {"cutoff": of_patient, **summarise(patients, of_patient, classes)},
        "scores": alone(scored.components),
        "baselines": alone(scored.baselines),
        **sections(scored, studied or study(subject, scored)),
    }


def _levels(subject: Subject, scored: Scored) -> Iterator[tuple[str, str, HeldOut]]:
    """Yield level, class (empty for all) and scores: items, patients, and each class with the normals."""
    patients, by_patient = scored.by_patient(subject.calibration.aggregation)
    for level, data, classes in ((subject.unit, scored.items, scored.classes), ("patient", patients, by_patient)):
        yield level, "", data
        for name, mask in classes.items():
            yield level, name, _class(data, mask)


def _class(data: HeldOut, mask: Mask) -> HeldOut:
    return only(data, mask | (data.labels == 0))


def figures_table(subject: Subject, scored: Scored) -> str:
    """Return a CSV of what every calibrated policy amounts to, at every level and of every class.

    Empty cells are figures that the data do not determine.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    counts = ("normal", "abnormal", "patients", "tp", "fp", "tn", "fn")
    writer.writerow(["level", "class", "policy", "cutoff", *counts, *COLUMNS])
    for level, name, data in _levels(subject, scored):
        areas = {"auroc": auroc(data.scores, data.labels), "auprc": auprc(data.scores, data.labels)}
        sick = int(data.labels.sum())
        known = [len(data.labels) - sick, sick, len(set(data.patients))]
        for policy, cutoffs in subject.policies().items():
            cutoff = cutoffs[level == "patient"]
            cells = decisions(data, cutoff)
            found = {**areas, **{n: float(v) for n, v in decision_figures(*cells).items()}}
            figures = ["" if np.isnan(found[c]) else f"{found[c]:.6g}" for c in COLUMNS]
            writer.writerow([level, name, policy, f"{cutoff:.9g}", *known, *map(int, cells), *figures])
    return text.getvalue()
