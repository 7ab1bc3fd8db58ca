"""What a model sees: grids of its outputs on unseen patients, its curves and figures, all in one report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medad_serve.calibration import Decider
from medad_serve.data.cache import Progress
from medad_serve.errors import MedadError
from medad_serve.evaluation import (
    Scored,
    Subject,
    beside,
    facts,
    full_size,
    maps_of,
    measure,
    open_subject,
    plots,
    score,
    study,
)
from medad_serve.report import (
    Listing,
    Row,
    constants,
    decision_listings,
    plot_history,
    plot_rows,
    plot_scores,
    scales,
    study_listings,
    three_planes,
    write_report,
)
from medad_serve.training.run import FINISH, METRICS, is_run

REPORT = "report.html"
PLACES = ("highest", "median", "lowest")


@dataclass(frozen=True)
class Picked:
    """One item to show, and why."""

    index: int
    """Among the scored."""
    label: int
    place: str


def visualize(
    path: Path,
    *,
    data: str | None = None,
    runtime: str | None = None,
    policy: str | None = None,
    out: Path | None = None,
    count: int = 12,
    progress: Progress | None = None,
) -> Path:
    """Write figures and ``report.html`` of a run or an artifact to ``out`` and return the report.

    ``count`` items are shown: the highest-scoring, the median and the lowest-scoring, of normals and of abnormals
    alike. Only patients that the model never saw are shown, none by name. Files of the same names in ``out`` are
    replaced, others stay.
    """
    subject, opened = open_subject(path, data=data, runtime=runtime, progress=progress)
    policy = policy or subject.policy
    subject.cutoffs(policy)  # refuse an unknown policy before scoring
    folder = out or beside(opened, "report", subject)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise MedadError(f"{folder} is a file", "Name a folder with --out") from None
    scored = score(subject)
    studied = study(subject, scored)
    metrics = measure(subject, scored, policy, studied)
    maps = full_size(subject, scored, policy)
    drawn = [
        *_score_plots(subject, scored, policy, folder),
        *plots(subject, scored, studied, metrics, folder.joinpath),
        *_grids(subject, scored, policy, pick(scored, count), folder),
        *_curves(opened, folder),
    ]
    write_report(
        folder / REPORT,
        title=f"medad-serve: {subject.name}",
        facts=facts(subject, metrics),
        plots=drawn,
        tables=_tables(metrics, _log(opened, FINISH)),
        maps=[maps] if maps else [],
    )
    return folder / REPORT


def pick(scored: Scored, count: int) -> list[Picked]:
    """Choose about ``count`` items: a like number of each place in the order of scores, of each class there is.

    Of few items none is chosen twice.
    """
    present = [label for label in (1, 0) if (scored.items.labels == label).any()]
    each = max(1, count // (len(PLACES) * len(present)))
    chosen: list[Picked] = []
    for label in present:
        members = np.flatnonzero(scored.items.labels == label)
        falling = members[np.argsort(-scored.items.scores[members], kind="stable")]
        middle = max(0, (len(falling) - each) // 2)
        parts = (falling[:each], falling[middle : middle + each], falling[-each:])
        known: set[int] = set()
        for place, part in zip(PLACES, parts, strict=True):
            chosen += [Picked(int(i), label, place) for i in part if int(i) not in known]
            known |= {int(i) for i in part}
    return chosen


def _score_plots(subject: Subject, scored: Scored, policy: str, folder: Path) -> list[tuple[str, Path]]:
    of_item, of_patient = subject.cutoffs(policy)
    patients, classes = scored.by_patient(subject.calibration.aggregation)
    title, unit = "Scores of patients that the model never saw", subject.unit
    plots = [(title, folder / f"scores_{unit}.png")]
    plot_scores(scored.items, of_item, plots[0][1], unit=unit, classes=scored.classes)
    if len(patients.scores) < len(scored.items.scores):
        plots.append((title, folder / "scores_patient.png"))
        plot_scores(patients, of_patient, plots[1][1], unit="patient", classes=classes)
    return plots


def _rows(subject: Subject, scored: Scored, policy: str, picked: list[Picked]) -> Iterator[tuple[Picked, list[Row]]]:
    """Run the model on one chosen item after the other and yield the lines that show it."""
    decider = Decider(subject.calibration.item)
    for each in picked:
        row = int(scored.rows[each.index])
        item = np.array(subject.data.tensor[row], np.float32)
        outputs = subject.runtime.run(item[None], subject.outputs)
        panels = maps_of(item, {name: values[0] for name, values in outputs.items()})
        decision = decider.decide(float(scored.items.scores[each.index]), policy)
        truth = (subject.data.kinds[row] or "abnormal") if each.label else "normal"
        answer = "anomalous" if decision.anomalous else "normal"
        text = f"{each.place}: {truth}\nscore {decision.score:.4g}\np = {decision.p_value:.3f}\ncalled {answer}"
        wrong = decision.anomalous != bool(each.label)
        yield each, three_planes(text, panels, wrong=wrong) if item.ndim == 4 else [Row(text, panels, wrong)]


def _grids(subject: Subject, scored: Scored, policy: str, picked: list[Picked], folder: Path) -> list[tuple[str, Path]]:
    """Draw one grid a class; of volumes one grid an item, all on the same scales of colour."""
    shown = list(_rows(subject, scored, policy, picked))
    ranges = scales([row for _, rows in shown for row in rows], subject.prep.values)
    plots = []
    for label, name in ((1, "abnormal"), (0, "normal")):
        of_class = [(each.place, rows) for each, rows in shown if each.label == label]
        title = f"{name.capitalize()}: highest, median and lowest score"
        if not subject.prep.is_volume and of_class:
            file = folder / f"items_{name}.png"
            plot_rows([row for _, rows in of_class for row in rows], file, title, ranges)
            plots.append((title, file))
            continue
        for number, (place, rows) in enumerate(of_class, 1):
            file = folder / f"items_{name}_{number}_{place}.png"
            plot_rows(rows, file, f"{name}, {place}: planes through the maximum of the heatmap", ranges)
            plots.append((title, file))
    return plots


def _log(opened: Path, name: str) -> Path | None:
    """Return a log of the run that was opened, or in which the artifact lies."""
    homes = [home for home in (opened, opened.parent) if is_run(home)]
    return homes[0] / name if homes and (homes[0] / name).is_file() else None


def _curves(opened: Path, folder: Path) -> list[tuple[str, Path]]:
    plots = []
    for title, log, name in (("Training", METRICS, "history.png"), ("After training", FINISH, "finish.png")):
        file = _log(opened, log)
        if file is not None and plot_history(file, folder / name):
            plots.append((title, folder / name))
    return plots


def _tables(metrics: dict[str, Any], finish: Path | None) -> list[Listing]:
    tables = [*decision_listings(metrics), *study_listings(metrics)]
    fixed = constants(finish) if finish else {}
    if fixed:
        found_rows = [[name, f"{value:.4g}"] for name, value in fixed.items()]
        tables.append(Listing("Found after training", ["what", "value"], found_rows))
    return tables
