"""What a model sees: grids of its outputs on unseen patients, its curves and figures, all in one report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medad_serve.calibration import Decider
from medad_serve.data.cache import Progress
from medad_serve.errors import MedadError
from medad_serve.evaluation import Scored, Subject, beside, measure, open_subject, score
from medad_serve.report import (
    Listing,
    Row,
    cell,
    constants,
    plot_history,
    plot_rows,
    plot_scores,
    scales,
    three_planes,
    write_report,
)
from medad_serve.runtime import FloatArray
from medad_serve.training.run import FINISH, METRICS, is_run

REPORT = "report.html"
PLACES = ("highest", "median", "lowest")
TITLES = {"alignment": "alignment (ALM)"}
"""Of outputs whose name is not what readers call them."""
FIGURES = ("auroc", "auprc", "sensitivity", "specificity", "precision", "f1", "accuracy")


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
    metrics = measure(subject, scored, policy)
    plots = [
        *_score_plots(subject, scored, policy, folder),
        *_grids(subject, scored, policy, pick(scored, count), folder),
        *_curves(opened, folder),
    ]
    write_report(
        folder / REPORT,
        title=f"medad-serve: {subject.name}",
        facts=_facts(subject, metrics),
        plots=plots,
        tables=_tables(metrics, _log(opened, FINISH)),
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


def maps_of(item: FloatArray, outputs: dict[str, NDArray[Any]]) -> dict[str, FloatArray]:
    """Return what can be looked at of one item ``(C, *S)``: arrays ``S``, or ``S`` and 3 for colour images.

    The item, its ``reconstruction`` and their absolute difference (``residual``) where the model returns one, and
    every other real-valued map, whatever it is called; ``heatmap`` comes last. ``outputs`` are those of the one
    item, without the batch axis; maps of another resolution are repeated up or thinned to that of the item.
    """
    size = item.shape[1:]
    shown = {"input": _image(item)}
    reconstruction = outputs.get("reconstruction")
    if reconstruction is not None:
        shown["reconstruction"] = _image(reconstruction)
        shown["residual"] = np.abs(item - reconstruction).mean(axis=0)
    is_map = {n: v for n, v in outputs.items() if v.ndim == item.ndim and v.dtype.kind == "f"}
    for name in sorted(is_map.keys() - {"reconstruction"}, key=lambda n: (n == "heatmap", n)):
        shown[TITLES.get(name, name)] = _fitted(is_map[name].mean(axis=0), size)
    return shown


def _image(item: FloatArray) -> FloatArray:
    return np.moveaxis(item, 0, -1) if len(item) == 3 else item.mean(axis=0)


def _fitted(values: FloatArray, size: tuple[int, ...]) -> FloatArray:
    """Bring a map to another size by its nearest values."""
    if values.shape == size:
        return values
    picks = [np.arange(wide) * have // wide for wide, have in zip(size, values.shape, strict=True)]
    return values[np.ix_(*picks)]


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


def _facts(subject: Subject, metrics: dict[str, Any]) -> dict[str, str]:
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


def _tables(metrics: dict[str, Any], finish: Path | None) -> list[Listing]:
    rows = []
    for level in (metrics["unit"], "patient"):
        found = metrics[level]
        for name, part in {"all abnormal": found, **found["classes"]}.items():
            rows.append([level, name, f"{part['normal']} / {part['abnormal']}", *(cell(part[f]) for f in FIGURES)])
    head = ["level", "class", "n", *FIGURES]
    alone = [[name, cell(found["auroc"])] for name, found in metrics["scores"].items()]
    alone += [[f"baseline: {name}", cell(found["auroc"])] for name, found in metrics["baselines"].items()]
    tables = [
        Listing("Figures with 95 % intervals, bootstrapped by patient", head, rows),
        Listing("Component scores and trivial baselines", ["score", "AUROC"], alone),
    ]
    fixed = constants(finish) if finish else {}
    if fixed:
        found_rows = [[name, f"{value:.4g}"] for name, value in fixed.items()]
        tables.append(Listing("Found after training", ["what", "value"], found_rows))
    return tables
