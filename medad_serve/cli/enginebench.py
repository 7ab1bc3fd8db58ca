"""``bench ARTIFACT...``, ``--all`` and ``--check``: engines beside each other, printed and written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medad_serve.cli.console import out, say, table
from medad_serve.errors import MedadError

if TYPE_CHECKING:
    from medad_serve.bench.guard import Compared
    from medad_serve.bench.measure import Plan
    from medad_serve.bench.results import Report
    from medad_serve.bench.tables import Table

SECONDS = 3.0
"""Of each engine at each batch size and number of threads."""


def bench_artifacts(
    paths: Sequence[Path], *, seconds: float | None, to: Path | None, as_json: bool, **how: Any
) -> None:
    """Measure every engine over artifacts (or the runs that they lie in); print, and write where ``to`` says."""
    from medad_serve.artifact import load_manifest, locate
    from medad_serve.bench.machine import this_machine
    from medad_serve.bench.measure import bench_engines
    from medad_serve.bench.results import Report, told_apart
    from medad_serve.bench.writing import refuse_other, write_report

    plan = _plan(seconds, **how)
    if to is not None:
        refuse_other(to)
    machine, artifacts = this_machine(), [locate(path) for path in paths]
    for artifact in artifacts:
        load_manifest(artifact)  # a fault of the last is told before the first takes its minutes
    benchmarks = told_apart([bench_engines(artifact, plan, say) for artifact in artifacts])
    report = Report(machine=machine, seconds=plan.seconds, benchmarks=benchmarks)
    if to is not None:
        write_report(report, to)
    _print(report, as_json)
    if to is not None:
        say(f"written to {to}")


def bench_families(
    models: Sequence[str], *, runs: Path, docs: Path, seconds: float | None, as_json: bool, **how: Any
) -> None:
    """Measure the models, by default every one, and write the page with its plots."""
    from medad_serve.bench.everything import PAGE, bench_all
    from medad_serve.models import families

    plan = _plan(seconds, **how)
    report = bench_all(models or list(families()), runs, docs, plan, say=say, keep=bool(models))
    _print(report, as_json)
    say(f"written to {docs / PAGE}")


def renew(docs: Path, **what: Any) -> None:
    """Measure what decoding or training costs anew, on a page that is there."""
    from medad_serve.bench.everything import PAGE, renew_data

    renew_data(docs, say=say, **what)
    say(f"written to {docs / PAGE}")


def check_families(models: Sequence[str], *, runs: Path, docs: Path, as_json: bool) -> None:
    """Hold the ratios of engines against the committed ones; raises MedadError where one became worse."""
    import json

    from medad_serve.bench.everything import check_all

    found = check_all(models, runs, docs, say=say)
    if as_json:
        out.print(json.dumps([each.model_dump() for each in found], indent=1), markup=False)
    else:
        _print_compared(found)
    worse = [each for each in found if each.worse]
    if worse:
        raise MedadError(
            f"{len(worse)} of {len(found)} ratios are worse than the tolerance allows",
            "Find what made them slower, or run make bench and commit its ratios",
        )


def _plan(
    seconds: float | None,
    *,
    batches: tuple[int, ...],
    threads: tuple[int, ...],
    device: str,
    only: tuple[str, ...],
    cold: bool,
) -> Plan:
    from medad_serve.bench.engines import engine, engines
    from medad_serve.bench.measure import Plan
    from medad_serve.models.base import device_for

    for name in only:
        engine(name)
    where = str(device_for(device)) if device in ("cpu", "auto") else device
    if where.startswith("cuda"):
        _require_gpu(where, [each.name for each in engines().values() if "cuda" in each.devices])
    return Plan(
        batches=batches or (1, 8), threads=threads, seconds=seconds or SECONDS, device=where, only=only, cold=cold
    )


def _require_gpu(device: str, names: Sequence[str]) -> None:
    import onnxruntime

    from medad_serve.bench.engines.weights import missing_for_torch

    if reason := missing_for_torch(device):
        has = ", ".join(onnxruntime.get_available_providers())
        raise MedadError(
            f"no GPU to measure on: {reason} (onnxruntime has {has})",
            f"On a machine with an NVIDIA GPU and its driver this measures {', '.join(names)}",
        )


def _print(report: Report, as_json: bool) -> None:
    from medad_serve.bench.listing import cost, skipped, speed

    if as_json:
        out.print(report.model_dump_json(indent=1), markup=False)
        return
    machine = report.machine
    out.print(f"{machine.kind}, {machine.system}, load {machine.load:g}", markup=False)
    for benchmark in report.benchmarks:
        for each in (speed(benchmark), cost(benchmark), skipped(benchmark)):
            if each.rows:
                _print_table(each)


def _print_table(found: Table) -> None:
    rows = table(found.title, *found.columns)
    for row in found.shown():
        rows.add_row(*row)
    out.print(rows)


def _print_compared(found: Sequence[Compared]) -> None:
    rows = table("speed relative to PyTorch eager", "model", "engine", "then", "now", "")
    for each in found:
        now = "did not run" if each.now is None else f"{each.now:.2f}"
        rows.add_row(each.model, each.engine, f"{each.before:.2f}", now, "worse" if each.worse else "")
    out.print(rows)
