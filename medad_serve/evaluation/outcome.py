"""``evaluate``: score, measure, and write figures, plots and a report beside each other."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medad_serve.calibration import HeldOut
from medad_serve.data.cache import Progress
from medad_serve.evaluation.maps import full_size
from medad_serve.evaluation.measures import figures_table, measure
from medad_serve.evaluation.scoring import Scored, score
from medad_serve.evaluation.studies import Studied, study
from medad_serve.evaluation.subject import Subject, beside, on_other_data, open_subject, run_around
from medad_serve.files import write_whole
from medad_serve.metrics import Mask
from medad_serve.report import (
    Confusion,
    Scatter,
    Sureness,
    decision_listings,
    plot_confusion,
    plot_reliability,
    plot_scores,
    plot_severity,
    study_listings,
    write_report,
)

Place = Callable[[str], Path]
"""Where a file of that name goes."""
_SCATTERS = {
    "synthetic": ("synthetic faults", "severity as made"),
    "true": ("graded items", "severity given"),
    "area": ("defects with masks", "share of the image"),
    "contrast": ("defects with masks", "contrast against the ring"),
}


@dataclass(frozen=True)
class Outcome:
    """What was measured on one data set."""

    data: str
    """``layout:directory``; empty where it is the artifact's own run's."""
    metrics: dict[str, Any]
    file: Path


def evaluate(
    path: Path,
    *,
    data: str | None = None,
    runtime: str | None = None,
    policy: str | None = None,
    out: Path | None = None,
    progress: Progress | None = None,
) -> tuple[dict[str, Any], Path]:
    """Measure a run (its trained model; its artifact where ``runtime`` names one) or an artifact.

    Returns the metrics and the file that holds them. Beside it lie ``figures.csv`` (every calibrated policy),
    plots and ``report.html``.

    Files that the model was trained, chosen or calibrated with are left out, wherever they lie now: of its own
    data the test patients count, of other data those of its test, or where it names none every file never seen.
    """
    subject, opened = open_subject(path, data=data, runtime=runtime, progress=progress)
    return _evaluate(subject, opened, policy, out)


def evaluate_all(
    path: Path,
    data: Sequence[str] = (),
    *,
    runtime: str | None = None,
    policy: str | None = None,
    progress: Progress | None = None,
) -> list[Outcome]:
    """Measure a run or an artifact on several data sets, by default its own and each that its run reports on."""
    subject, opened = open_subject(path, data=data[0] if data else None, runtime=runtime, progress=progress)
    run = run_around(opened)
    sources = list(data) or ([run.config.data, *run.config.report_on] if run else [""])
    outcomes = []
    for number, source in enumerate(sources):
        if number:
            subject = on_other_data(subject, opened, source, progress)
        outcomes.append(Outcome(source, *_evaluate(subject, opened, policy, None)))
    return outcomes


def _evaluate(subject: Subject, opened: Path, policy: str | None, out: Path | None) -> tuple[dict[str, Any], Path]:
    policy = policy or subject.policy
    subject.cutoffs(policy)  # refuse an unknown policy before scoring
    scored = score(subject)
    studied = study(subject, scored)
    metrics = measure(subject, scored, policy, studied)
    stem = beside(opened, "metrics", subject)
    target = out or stem.with_name(f"{stem.name}.json")
    place = _companions(target)
    write_whole(target, json.dumps(metrics, indent=1) + "\n")
    write_whole(place("figures.csv"), figures_table(subject, scored))
    scores = target.with_suffix(".png")
    cutoff = metrics[subject.unit]["cutoff"]
    plot_scores(scored.items, cutoff, scores, unit=subject.unit, classes=scored.classes)
    maps = full_size(subject, scored, policy)
    write_report(
        place("report.html"),
        title=f"medad-serve: {subject.name}",
        facts=facts(subject, metrics),
        tables=[*decision_listings(metrics), *study_listings(metrics)],
        plots=[("Scores", scores), *plots(subject, scored, studied, metrics, place)],
        maps=[maps] if maps else [],
    )
    return metrics, target


def _companions(target: Path) -> Place:
    """Return where files beside ``metrics.json`` go: ``figures.csv``, and of ``other.json`` ``other-figures.csv``."""

    def place(name: str) -> Path:
        stem, dot, ending = name.partition(".")
        named = target.stem.replace("metrics", stem) if "metrics" in target.stem else f"{target.stem}-{stem}"
        return target.with_name(f"{named}{dot}{ending}")

    return place


def facts(subject: Subject, metrics: dict[str, Any]) -> dict[str, str]:
    """Return what a reader must know of a report's figures."""
    calibration = metrics["calibration"]
    items = metrics[subject.unit]
    return {
        "model": subject.family,
        "runtime": subject.runtime_name,
        "measured on": f"{metrics['split']} patients",
        "patients": str(metrics["patient"]["patients"]),
        f"{subject.unit}s": f"{items['normal']} normal, {items['abnormal']} abnormal",
        "policy": metrics["policy"],
        "cutoffs made of": f"{calibration['n']} normal {subject.unit}s ({calibration['method'].replace('_', ' ')})",
        "patient score": metrics["aggregation"],
        "files that could not be read": str(metrics["faults"]),
    }


def plots(
    subject: Subject, scored: Scored, studied: Studied, metrics: dict[str, Any], place: Place
) -> list[tuple[str, Path]]:
    """Draw the confusion matrix, and reliability and severity where they were found; return titles and files."""
    drawn = [(f"Decisions at the cutoff {metrics['policy']}", place("confusion.png"))]
    plot_confusion(_confusions(subject, scored, metrics), drawn[0][1])
    if studied.probabilities:
        outputs = [
            Sureness(name, values, metrics["probability"][name]["ece"]["value"])
            for name, values in studied.probabilities.items()
        ]
        drawn.append(("Probability", place("reliability.png")))
        plot_reliability(outputs, scored.items.labels, drawn[-1][1])
    if studied.graded:
        scatters = [
            Scatter(*_SCATTERS[g.name], g.against, g.predicted, g.kinds, g.name in ("true", "synthetic"))
            for g in studied.graded
        ]
        drawn.append(("Severity", place("severity.png")))
        plot_severity(scatters, drawn[-1][1])
    return drawn


def _confusions(subject: Subject, scored: Scored, metrics: dict[str, Any]) -> list[Confusion]:
    patients, classes = scored.by_patient(metrics["aggregation"])
    levels = [(subject.unit, scored.items, scored.classes), ("patient", patients, classes)]
    several = len(patients.scores) < len(scored.items.scores)
    return [
        Confusion(f"{level}s", _called(data, masks, metrics[level]["cutoff"]))
        for level, data, masks in levels[: 1 + several]
    ]


def _called(data: HeldOut, classes: dict[str, Mask], cutoff: float) -> dict[str, tuple[int, int]]:
    called = data.scores >= cutoff
    groups = {"normal": data.labels == 0, "abnormal": data.labels == 1, **(classes if len(classes) > 1 else {})}
    return {
        name: (int((mask & ~called).sum()), int((mask & called).sum())) for name, mask in groups.items() if np.any(mask)
    }
