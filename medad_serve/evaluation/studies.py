"""What is found beyond the decisions: where, how severe and how sure, as far as model and data tell."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit

from medad_serve.evaluation.pixels import Located, locate, pixel_section
from medad_serve.evaluation.scoring import Scored
from medad_serve.evaluation.subject import Subject
from medad_serve.evaluation.synthetic import Synthetic, make_faults, synthetic_section
from medad_serve.metrics import Floats
from medad_serve.models import AnomalyModel
from medad_serve.reliability import calibration_figures, is_probability
from medad_serve.severity import mean_error, rank_correlation

SEVERITY, PROBABILITY = "severity", "probability"


@dataclass(frozen=True)
class Graded:
    """Predicted severities beside something that a severity should follow."""

    name: str
    """``true`` where it is the severity itself, else ``area`` or ``contrast`` of the defect, ``synthetic``."""
    against: Floats
    predicted: Floats
    patients: tuple[str, ...]
    kinds: tuple[str, ...]


@dataclass(frozen=True)
class Studied:
    """What was found; None and empty where model or data tell nothing."""

    located: Located | None
    synthetic: Synthetic | None
    graded: tuple[Graded, ...]
    probabilities: dict[str, Floats]
    """By output, ``(N,)`` of the scored items."""


def study(subject: Subject, scored: Scored) -> Studied:
    """Find what there is to find of the scored items; files with masks are decoded again."""
    model = subject.untrained()
    located, synthetic = locate(subject, scored), make_faults(subject, scored, model)
    graded = (*_on_real(subject, scored, located), *_on_synthetic(synthetic))
    return Studied(located, synthetic, graded, _probabilities(scored, model))


def _probabilities(scored: Scored, model: AnomalyModel | None) -> dict[str, Floats]:
    """Return the probability that the model says, and beside it the score where that reads as another one."""
    said, scores = scored.components.get(PROBABILITY), scored.items.scores
    if said is None:
        return {}
    if model is not None and model.logit:
        return {"sigmoid of score": expit(scores), PROBABILITY: said}
    if is_probability(scores) and not np.allclose(scores, said):
        return {"score": scores, PROBABILITY: said}
    return {PROBABILITY: said}


def _on_real(subject: Subject, scored: Scored, located: Located | None) -> Iterator[Graded]:
    predicted = scored.components.get(SEVERITY)
    if predicted is None:
        return
    given = [subject.data.samples[row].severity for row in scored.rows]
    graded = np.flatnonzero([value is not None for value in given])
    if len(graded):
        yield _graded("true", np.array([given[i] for i in graded], np.float64), graded, subject, scored)
    if located is not None:
        known = {"area": (located.areas, located.areas > 0), "contrast": (located.contrasts, located.has_contrast)}
        for name, (against, there) in known.items():
            if there.any():
                yield _graded(name, against[there], located.index[there], subject, scored)


def _graded(name: str, against: Floats, index: Any, subject: Subject, scored: Scored) -> Graded:
    patients = tuple(scored.items.patients[i] for i in index)
    kinds = tuple(subject.data.kinds[scored.rows[i]] for i in index)
    return Graded(name, against, scored.components[SEVERITY][index], patients, kinds)


def _on_synthetic(made: Synthetic | None) -> Iterator[Graded]:
    if made is not None and made.predicted is not None:
        on = made.faulted
        patients = tuple(p for p, is_on in zip(made.patients, on, strict=True) if is_on)
        yield Graded("synthetic", made.severity[on], made.predicted[on], patients, ("",) * len(patients))


def sections(scored: Scored, studied: Studied) -> dict[str, Any]:
    """Return ``pixel``, ``severity``, ``synthetic`` and ``probability``, each where it was found."""
    out: dict[str, Any] = {}
    if studied.located is not None:
        out["pixel"] = pixel_section(scored, studied.located)
    severity = {g.name: _agreement(g) for g in studied.graded if g.name != "synthetic"}
    if severity:
        out["severity"] = severity
    if studied.synthetic is not None:
        out["synthetic"] = synthetic_section(scored, studied.synthetic)
    if studied.probabilities:
        labels, patients = scored.items.labels, scored.items.patients
        out["probability"] = {
            name: calibration_figures(values, labels, patients) for name, values in studied.probabilities.items()
        }
    return out


def _agreement(graded: Graded) -> dict[str, Any]:
    """Return how a severity follows: by its error too where it is held against the severity itself."""
    out: dict[str, Any] = {"items": len(graded.predicted)}
    if graded.name == "true":
        out["mae"] = mean_error(graded.predicted, graded.against, graded.patients)
    out["spearman"] = rank_correlation(graded.predicted, graded.against, graded.patients)
    return out
