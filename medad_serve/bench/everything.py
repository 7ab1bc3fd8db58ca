"""Every registered model benchmarked, into ``benchmarks.md`` and a folder beside it; and held against it later."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from medad_serve.artifact import load_manifest
from medad_serve.bench.catalogue import LEARNT, artifact_of
from medad_serve.bench.codecs import bench_codecs
from medad_serve.bench.command import COMMAND, command_table, predict_seconds
from medad_serve.bench.document import page
from medad_serve.bench.guard import (
    FILE,
    Compared,
    Ratios,
    better_of,
    compare,
    guard_plan,
    joined,
    ratios_of,
    read_ratios,
    settle,
)
from medad_serve.bench.io import SECONDS, bench_dicom, bench_files
from medad_serve.bench.machine import Machine, this_machine
from medad_serve.bench.measure import Plan, bench_engines
from medad_serve.bench.results import Benchmark, Report
from medad_serve.bench.tables import Table
from medad_serve.bench.training import bench_training
from medad_serve.bench.writing import RECORD, refuse_other, write_files
from medad_serve.errors import MedadError
from medad_serve.evaluation import open_subject, score
from medad_serve.files import whole_directory, write_whole
from medad_serve.metrics import auroc
from medad_serve.models import family

FOLDER, PAGE, TABLES = "benchmarks", "benchmarks.md", "tables.json"
DATA = ("dicom", "files", "codecs", "training")
"""Tables of what data costs, in their order on the page."""
GUARD_SECONDS = 1.0
"""Of each engine at each batch size, in a pass of the guard."""
Say = Callable[[str], None]


@dataclass
class _Found:
    """What was measured so far."""

    data: dict[str, Table] = field(default_factory=dict)
    benchmarks: list[Benchmark] = field(default_factory=list)
    passes: dict[str, tuple[dict[str, float], dict[str, float]]] = field(default_factory=dict)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    command_s: dict[str, float] = field(default_factory=dict)
    kept: Ratios | None = None
    """Of models that the page already told of."""

    def add(self, tables: Iterable[Table]) -> None:
        """Take tables in place of those of their names."""
        self.data |= {each.name: each for each in tables}


def bench_all(models: Sequence[str], home: Path, docs: Path, plan: Plan, *, say: Say, keep: bool = False) -> Report:
    """Benchmark the models, by runs of :mod:`medad_serve.bench.catalogue` made below ``home``.

    Writes the page, its plots and the ratios. Speed is that of a small run, fidelity that of one that learned.

    The page is written whole after each model, so that a run which is stopped loses only the model that it was at; what
    it did not reach, or could not export, is told on the page. ``keep`` leaves what a page of this machine, with the
    same packages, holds of other models.
    """
    refuse_other(docs / FOLDER)
    machine = this_machine()
    found = _kept(docs / FOLDER, models, machine, say) if keep else _Found()

    def written(left: Sequence[str]) -> Report:
        report = Report(
            machine=machine,
            seconds=plan.seconds,
            benchmarks=tuple(sorted(found.benchmarks, key=lambda each: each.family)),
            command=_command(plan),
            left_out=(*found.left_out, *((name, "not reached before the run was stopped") for name in left)),
        )
        _write(report, found, docs)
        return report

    for number, name in enumerate(models, 1):
        _bench_one(name, home, plan, say, found)
        if found.benchmarks:
            written(models[number:])
    if not any(each.family in models for each in found.benchmarks):
        raise MedadError("no model could be measured", "; ".join(f"{name}: {why}" for name, why in found.left_out))
    if plan.device == "cpu" and "dicom" not in found.data:
        found.add(_decoding(say))
    if plan.device == "cpu" and "training" not in found.data:
        found.add([_training([each.family for each in found.benchmarks], plan.seconds, say)])
    return written(())


def renew_data(docs: Path, *, io: bool, epoch: bool, seconds: float | None, say: Say) -> None:
    """Measure what decoding (``io``) and training steps (``epoch``) cost anew, and keep the rest of the page.

    Raises MedadError where the page is not of this machine, of other packages, or of a GPU.
    """
    folder, machine = docs / FOLDER, this_machine()
    refuse_other(folder)
    report = _report(folder, machine)
    if report is None or any(each.device != "cpu" for each in report.benchmarks):
        raise MedadError(f"{folder} holds no benchmark of this machine's processor and packages", "Run: make bench")
    found = _before(folder, report, ())
    if io:
        found.add(_decoding(say, seconds))
    if epoch:
        found.add([_training([each.family for each in report.benchmarks], seconds or report.seconds, say)])
    _write(report, found, docs)


def _report(folder: Path, machine: Machine) -> Report | None:
    """Return what a folder holds, where this machine made it with the same packages."""
    if not (folder / RECORD).is_file():
        return None
    report = Report.model_validate_json((folder / RECORD).read_bytes())
    alike = (report.machine.kind, report.machine.versions) == (machine.kind, machine.versions)
    return report if alike else None


def _before(folder: Path, report: Report, models: Sequence[str]) -> _Found:
    """Return what a folder holds of other models."""
    tables = {each.name: each for each in TypeAdapter(list[Table]).validate_json((folder / TABLES).read_bytes())}
    commands = tables.pop(COMMAND).rows if COMMAND in tables else ()
    return _Found(
        data=tables,
        benchmarks=[each for each in report.benchmarks if each.family not in models],
        left_out=[(name, why) for name, why in report.left_out if name not in models],
        command_s={str(name): float(s) for name, s in commands if name not in models},  # type: ignore[arg-type]
        kept=read_ratios(folder, report.machine.kind) if (folder / FILE).is_file() else None,
    )


def _kept(folder: Path, models: Sequence[str], machine: Machine, say: Say) -> _Found:
    if not (folder / RECORD).is_file():
        return _Found()
    report = _report(folder, machine)
    if report is None:
        say(f"{folder} is of another machine or other packages: it is made anew")
        return _Found()
    return _before(folder, report, models)


def _command(plan: Plan) -> str:
    """Return what makes the page again: the target, or where engines were chosen, the command with them."""
    if not plan.only:
        return "make bench" if plan.device == "cpu" else "make bench-gpu"
    engines = " ".join(f"--engine '{name}'" for name in plan.only)
    return f"medad-serve bench --all --device {plan.device} --seconds {plan.seconds:g} {engines}"


def _bench_one(name: str, home: Path, plan: Plan, say: Say, found: _Found) -> None:
    try:
        artifact = artifact_of(name, home, say, device=plan.device)
    except MedadError as error:
        found.left_out.append((name, str(error)))
        say(f"{name}: left out: {error}")
        return
    fidelity = _fidelity(name, home, say, plan.device)
    found.benchmarks.append(bench_engines(artifact, plan, say).model_copy(update=fidelity))
    if plan.device == "cpu":
        found.command_s[name] = predict_seconds(artifact)
        say(f"{name}: two passes for the ratios")
        found.passes[name] = _ratios(artifact), _ratios(artifact)


def _fidelity(name: str, home: Path, say: Say, device: str) -> dict[str, Any]:
    """Return what gates found for a run that learned, in place of what they found for the small one."""
    try:
        artifact = artifact_of(name, home, say, recipe=LEARNT, device=device)
        learnt = load_manifest(artifact)
    except MedadError as error:
        say(f"{name}: nothing is told of reduced precision: {error}")
        return {"fidelity": ()}
    size = "x".join(map(str, learnt.prep.size))
    say(f"{name}: AUROC of each variant on test items")
    tested = {variant: _auroc(artifact, variant) for variant in learnt.calibrations}
    trained = f"of a model trained on phantoms at {size}, as `medad-serve quickstart --model {name}` does"
    return {
        "fidelity": learnt.fidelity,
        "fidelity_of": trained,
        "tested": tested,
        "refused": tuple(f"{variant}: {why}" for variant, why in learnt.refused.items()),
    }


def _auroc(artifact: Path, variant: str) -> float:
    items = score(open_subject(artifact, runtime=variant)[0]).items
    return auroc(items.scores, items.labels)


def _write(report: Report, found: _Found, docs: Path) -> None:
    data = sorted(found.data.values(), key=lambda each: DATA.index(each.name))
    tables = [*data, *([command_table(found.command_s)] if found.command_s else [])]
    more = list(tables)
    with whole_directory(docs / FOLDER) as folder:
        write_files(report, folder)
        write_whole(folder / TABLES, TypeAdapter(list[Table]).dump_json(tables, indent=1).decode() + "\n")
        for table in tables:
            write_whole(folder / f"{table.name}.csv", table.csv())
        if found.passes or found.kept:
            ratios = settle(found.passes, report.machine.kind, GUARD_SECONDS)
            ratios = joined(ratios, found.kept) if found.kept else ratios
            write_whole(folder / FILE, ratios.model_dump_json(indent=1) + "\n")
            more.append(_noise(ratios))
    if report.left_out:
        title = "Models that were not measured"
        more.insert(0, Table("left-out", title, ("model", "why"), report.left_out))
    write_whole(docs / PAGE, page(report, command=report.command, plots=f"{FOLDER}/", more=more))


def check_all(models: Sequence[str], home: Path, docs: Path, *, say: Say) -> list[Compared]:
    """Measure the ratios of the models anew and hold them against the committed ones; twice where one is worse."""
    before = read_ratios(docs / FOLDER, this_machine().kind)
    unknown = sorted(set(models) - set(before.ratios))
    if unknown:
        raise MedadError(f"{FILE} holds nothing of {', '.join(unknown)}", "Run: make bench")
    found: list[Compared] = []
    for name in models or before.ratios:
        artifact = artifact_of(name, home, say)
        say(f"{name}: measuring")
        first = compare(before, name, _ratios(artifact))
        if any(each.worse for each in first):
            say(f"{name}: measuring once more, something was slower")
            first = better_of(first, compare(before, name, _ratios(artifact)))
        found += first
    return found


def _decoding(say: Say, seconds: float | None = None) -> list[Table]:
    say("decoding and preparing, beside floors and other pipelines")
    each = seconds or SECONDS
    return [bench_dicom(seconds=each), bench_files(seconds=each), bench_codecs(seconds=each)]


def _training(models: Sequence[str], seconds: float, say: Say) -> Table:
    say("training steps, from memory and through the trainer")
    return bench_training([family(name) for name in models], seconds=seconds)


def _ratios(artifact: Path) -> dict[str, float]:
    return ratios_of(bench_engines(artifact, guard_plan(GUARD_SECONDS)))


def _noise(ratios: Ratios) -> Table:
    rows = (
        ("ratios kept", sum(map(len, ratios.ratios.values()))),
        ("s of each engine and batch size in a pass", ratios.seconds),
        ("share by which a ratio may fall", ratios.tolerance),
        ("too unsteady to be kept", ", ".join(ratios.unsteady) or "none"),
    )
    return Table("guard", "What make bench-check holds to", ("of", "value"), rows)
