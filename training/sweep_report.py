"""The trials of a sweep as a table and as plots."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from medad_serve.files import write_whole

STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "stopped",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}
TABLE, HISTORY, SLICES, IMPORTANCE = "trials.csv", "history.png", "slices.png", "importance.png"


def state_of(trial: FrozenTrial) -> str:
    """Return what became of a trial; a failed one has a reason, a stopped one is taken up by another."""
    return "failed" if "error" in trial.user_attrs else STATES[trial.state]


def trial_rows(study: optuna.Study, metric: str) -> list[dict[str, Any]]:
    """Return one row a trial: number, state, metric, epochs, seconds, settings, run and reason of a failure.

    A pruned trial has the metric of its last epoch.
    """
    trials = study.get_trials(deepcopy=False)
    keys = list(dict.fromkeys(key for t in trials for key in t.params))
    rows = []
    for t in trials:
        seconds = round(t.duration.total_seconds(), 1) if t.duration else None
        row = {"trial": t.number, "state": state_of(t), metric: t.value, "epochs": len(t.intermediate_values)}
        row |= {"seconds": seconds, **{key: t.params.get(key) for key in keys}}
        rows.append({**row, "run": t.user_attrs.get("run", ""), "error": t.user_attrs.get("error", "")})
    return rows


def best_trial(study: optuna.Study) -> FrozenTrial | None:
    """Return the completed trial with the best value."""
    done = [t for t in study.get_trials(deepcopy=False) if t.state == TrialState.COMPLETE]
    sign = 1 if study.direction == optuna.study.StudyDirection.MINIMIZE else -1
    return min(done, key=lambda t: sign * (t.value or 0.0), default=None)


def write_sweep(study: optuna.Study, folder: Path, metric: str) -> None:
    """Write ``trials.csv`` and, where trials completed, the plots."""
    rows = trial_rows(study, metric)
    if not rows:
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(folder / TABLE, text.getvalue())
    if best_trial(study) is not None:
        _save(_history(study, metric), folder / HISTORY)
        _save(_slices(study, metric), folder / SLICES)
        if figure := _importance(study, metric):
            _save(figure, folder / IMPORTANCE)


def _save(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    write_whole(path, buffer.getvalue())


def _finished(study: optuna.Study, state: TrialState) -> list[FrozenTrial]:
    return [t for t in study.get_trials(deepcopy=False) if t.state == state and t.value is not None]


def _scale(axis: Axes, values: list[float]) -> None:
    """Use a logarithmic axis where one diverged trial would flatten all others."""
    if min(values) > 0 and max(values) > 100 * min(values):
        axis.set_yscale("log")


def _history(study: optuna.Study, metric: str) -> Figure:
    """Draw the value of every trial in order, and the best so far."""
    figure = Figure(figsize=(7, 3.6))
    axis = figure.subplots()
    done, pruned = _finished(study, TrialState.COMPLETE), _finished(study, TrialState.PRUNED)
    values = np.array([t.value for t in done], float)
    lowest = study.direction == optuna.study.StudyDirection.MINIMIZE
    best = np.minimum.accumulate(values) if lowest else np.maximum.accumulate(values)
    axis.plot([t.number for t in done], values, "o", label="complete")
    axis.plot(
        [t.number for t in pruned], [t.value or 0.0 for t in pruned], "x", color="grey", label="pruned, last epoch"
    )
    axis.step([t.number for t in done], best, where="post", color="tab:red", label="best so far")
    axis.set(xlabel="trial", ylabel=metric)
    _scale(axis, [t.value or 0.0 for t in (*done, *pruned)])
    axis.legend()
    return figure


def _slice(axis: Axes, key: str, done: list[FrozenTrial]) -> None:
    """Draw value against one setting, coloured by the order of the trials."""
    done = [t for t in done if key in t.params]
    kind = done[0].distributions[key]
    x: list[Any] = [t.params[key] for t in done]
    if isinstance(kind, CategoricalDistribution):
        x = [kind.choices.index(value) for value in x]
        axis.set_xticks(range(len(kind.choices)), [json.dumps(c).strip('"') for c in kind.choices])
    elif isinstance(kind, FloatDistribution | IntDistribution) and kind.log:
        axis.set_xscale("log")
    axis.scatter(x, [t.value or 0.0 for t in done], c=[t.number for t in done], cmap="Blues", edgecolors="grey")
    axis.set_xlabel(key)


def _slices(study: optuna.Study, metric: str) -> Figure:
    done = _finished(study, TrialState.COMPLETE)
    keys = list(dict.fromkeys(key for t in done for key in t.params))
    figure = Figure(figsize=(3.2 * len(keys), 3.2))
    axes = figure.subplots(1, len(keys), sharey=True, squeeze=False)[0]
    for axis, key in zip(axes, keys, strict=True):
        _slice(axis, key, done)
    axes[0].set_ylabel(metric)
    _scale(axes[0], [t.value or 0.0 for t in done])
    return figure


def _importance(study: optuna.Study, metric: str) -> Figure | None:
    """Draw the share of the variance that each setting explains (fANOVA); None for too few trials to tell."""
    done = _finished(study, TrialState.COMPLETE)
    if len(done) < 2 + max(len(t.params) for t in done) or len({t.value for t in done}) < 2:
        return None
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    figure = Figure(figsize=(6, 0.5 * len(shares) + 1))
    axis = figure.subplots()
    axis.barh(list(shares)[::-1], list(shares.values())[::-1])
    axis.set_xlabel(f"share of the variance of {metric}")
    return figure
