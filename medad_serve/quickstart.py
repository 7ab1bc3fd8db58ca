"""The whole line on synthetic data: write, train, calibrate, export, archive, serve, ask over HTTP, report."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medad_serve.artifact import load_manifest
from medad_serve.client import Client
from medad_serve.data import Sample
from medad_serve.data.phantoms import PHANTOMS
from medad_serve.errors import MedadError
from medad_serve.evaluation import evaluate, export_run
from medad_serve.export.archive import archive
from medad_serve.files import whole_directory, write_whole
from medad_serve.models import Family, family
from medad_serve.predictor import DETAILS
from medad_serve.report import Shown, plot_history, write_report
from medad_serve.server import Ports, Server
from medad_serve.severity import rank_correlation
from medad_serve.training.config import resolve
from medad_serve.training.fit import fit
from medad_serve.training.run import METRICS, Run, create_run

Say = Callable[[str], None]
FOLDER = "quickstart"
PARITY_FORMATS = ("onnx", "torchscript")
OVERLAYS = 12
"""Answers shown with their overlay in the report; all are asked for and counted."""
PLOTS = (("Decisions", "confusion.png"), ("Probability", "reliability.png"), ("Severity", "severity.png"))
"""What evaluation draws beside its metrics, where the model has it."""


@dataclass(frozen=True)
class Plan:
    """How much is made and trained."""

    healthy: int
    abnormal: int
    slices: int
    overrides: tuple[str, ...]

    @classmethod
    def of(cls, chosen: Family) -> Plan:
        """Return what the model and its phantom say: sized for some minutes on two cores."""
        phantom = PHANTOMS[chosen.phantom]
        return cls(phantom.healthy, phantom.abnormal, phantom.slices, chosen.quick)


@dataclass(frozen=True)
class Sent:
    """One held-out file, what it truly is and what the server said."""

    sample: Sample
    answer: dict[str, Any]

    @property
    def correct(self) -> bool:
        """Whether the decision is the truth; an error is a wrong decision."""
        return bool(self.answer.get("anomalous", not self.sample.label) == bool(self.sample.label))

    @property
    def truth(self) -> str:
        """What the file shows, in words."""
        if not self.sample.label:
            return "healthy"
        kind, severity = self.sample.kind or "abnormal", self.sample.severity
        return kind if severity is None else f"{kind}, severity {severity:g}"

    @property
    def told(self) -> dict[str, float]:
        """What the server said beside the decision: probability and severity, where the model has them."""
        return {name: self.answer[name] for name in DETAILS if name in self.answer}


def quickstart(
    runs: Path, model: str = "ae", *, seed: int = 0, plan: Plan | None = None, say: Say = lambda _: None
) -> dict[str, Any]:
    """Run everything below ``RUNS/quickstart`` and return what ``summary.json`` there holds, each figure measured."""
    started = time.monotonic()
    chosen = family(model)
    phantom = PHANTOMS[chosen.phantom]
    plan = plan or Plan.of(chosen)
    home = runs / FOLDER
    data = home / "data"
    say(f"1/6 writing {plan.healthy + plan.abnormal} synthetic {chosen.phantom} patients to {data}")
    with whole_directory(data) as beside:
        phantom.write(beside, healthy=plan.healthy, abnormal=plan.abnormal, slices=plan.slices, seed=seed)
    source = f"{phantom.layout}:{data}"
    given = [f"experiment={FOLDER}", f"seed={seed}", *plan.overrides]
    if chosen.builds_on:
        parent = _train(chosen.builds_on, source, [f"seed={seed}", *family(chosen.builds_on).quick], home, say)
        given.append(f"init={parent.path}")
    run = _train(model, source, given, runs, say)
    say("3/6 exporting: calibrating cutoffs over the exported file, proving parity")
    name = f"quickstart-{model}"
    artifact = export_run(run, PARITY_FORMATS, name=name, say=say)
    metrics, metrics_file = evaluate(artifact)
    say("4/6 archiving for TorchServe and starting it")
    store = home / "model_store"
    archive(artifact, store)
    sent = _ask(run, store, name, say)
    say("6/6 writing the report")
    summary = _summary(artifact, metrics, sent)
    shown = _overlays(sent, home / "overlays")
    plot_history(run.path / METRICS, run.path / "history.png")
    summary["seconds"] = round(time.monotonic() - started, 1)
    facts = {key: f"{value:.4g}" if isinstance(value, float) else str(value) for key, value in summary.items()}
    plots = [("Scores of the test patients", metrics_file.with_suffix(".png"))]
    plots += [(title, file) for title, name in PLOTS if (file := metrics_file.with_name(name)).is_file()]
    plots += [("Training", run.path / "history.png")]
    write_report(home / "report.html", title=f"medad-serve quickstart: {model}", facts=facts, plots=plots, shown=shown)
    write_whole(home / "summary.json", json.dumps(summary, indent=1) + "\n")
    return summary


def _train(model: str, source: str, overrides: list[str], runs: Path, say: Say) -> Run:
    """Train one model to its end."""
    run = create_run(resolve(model, source, None, overrides), runs)
    learns = "healthy and abnormal patients" if run.build().supervised else "healthy patients only"
    say(f"2/6 training {model} on {learns}, in {run.path}")
    fit(run, run.prepared())
    return run


def _ask(run: Run, store: Path, name: str, say: Say) -> list[Sent]:
    """Serve the store on free ports, send every slice of the test patients over HTTP, stop the server."""
    test = run.split.patients("test")
    samples = [s for s in run.table().samples if s.patient in test]
    server = Server(store, Ports.free())
    with ExitStack() as stack:
        server.start([name])
        stack.callback(server.stop)
        say(f"5/6 sending {len(samples)} held-out files to {server.url('inference')}")
        client = stack.enter_context(Client(server.url("inference"), key_file=server.key_file))
        answers = list(client.predict_many([s.path for s in samples], name, heatmap="png"))
    return [Sent(sample, answer) for sample, answer in zip(samples, answers, strict=True)]


def _share(sent: list[Sent], label: int) -> float:
    of_class = [s.correct for s in sent if s.sample.label == label]
    return sum(of_class) / len(of_class)


def _summary(artifact: Path, metrics: dict[str, Any], sent: list[Sent]) -> dict[str, Any]:
    failed = [s.answer["error"] for s in sent if "error" in s.answer]
    if failed:
        raise MedadError(f"{len(failed)} requests failed, e.g. {failed[0]['message']}", failed[0].get("hint", ""))
    return {
        "auroc": metrics[metrics["unit"]]["auroc"]["value"],
        "auroc_low": metrics[metrics["unit"]]["auroc"]["low"],
        "auroc_high": metrics[metrics["unit"]]["auroc"]["high"],
        "auroc_patient": metrics["patient"]["auroc"]["value"],
        "auroc_of_mean_intensity": metrics["baselines"]["mean"]["auroc"]["value"],
        "auroc_of_99th_percentile": metrics["baselines"]["p99"]["auroc"]["value"],
        "specificity": _share(sent, 0),
        "sensitivity": _share(sent, 1),
        **agreement(sent),
        "parity_max_abs_diff": max(p.max_absolute_difference for p in load_manifest(artifact).parity),
        "requests": len(sent),
        "wrong_decisions": sum(not s.correct for s in sent),
    }


def agreement(sent: list[Sent]) -> dict[str, float | None]:
    """Return what answers say beside the decision: its median of either class, and how it agrees with the truth.

    ``probability_brier`` is the mean squared error against the label; ``severity_spearman`` the rank correlation with
    the severities that the data set tells, None where they or the answers all tie. Without such outputs it is empty.
    """
    out: dict[str, float | None] = {}
    for name in DETAILS:
        for label, called in ((0, "healthy"), (1, "abnormal")):
            said = [s.told[name] for s in sent if s.sample.label == label and name in s.told]
            if said:
                out[f"median_{name}_{called}"] = float(np.median(said))
    if sure := [s for s in sent if "probability" in s.told]:
        out["probability_brier"] = float(np.mean([(s.told["probability"] - s.sample.label) ** 2 for s in sure]))
    graded = [(s.told["severity"], s.sample) for s in sent if "severity" in s.told and s.sample.severity is not None]
    if graded:
        said, true = np.array([(told, sample.severity) for told, sample in graded], np.float64).T
        found = rank_correlation(said, true, [sample.patient for _, sample in graded], resamples=1)
        out["severity_spearman"] = found["value"]
    return out


def _overlays(sent: list[Sent], folder: Path) -> list[Shown]:
    """Write the overlay of every answer; return those for the report: of each class some, by rising severity."""
    shown: dict[int, list[Shown]] = {0: [], 1: []}
    with whole_directory(folder) as beside:
        for index, each in enumerate(sorted(sent, key=lambda s: s.sample.severity or 0)):
            file = f"{index:03d}-{each.sample.kind or ('abnormal' if each.sample.label else 'healthy')}.png"
            (beside / file).write_bytes(base64.b64decode(each.answer["heatmap"]["data"]))
            shown[each.sample.label].append(
                Shown(
                    name=file,
                    truth=each.truth,
                    answer="anomalous" if each.answer["anomalous"] else "normal",
                    score=each.answer["score"],
                    p_value=each.answer["p_value"],
                    correct=each.correct,
                    overlay=folder / file,
                    told=tuple(each.told.items()),
                )
            )
    return [*_spread(shown[1]), *_spread(shown[0])]


def _spread(shown: list[Shown]) -> list[Shown]:
    """Return half of what the report shows, evenly over a list."""
    picks = np.unique(np.linspace(0, len(shown) - 1, min(OVERLAYS // 2, len(shown))).round().astype(int))
    return [shown[pick] for pick in picks]
