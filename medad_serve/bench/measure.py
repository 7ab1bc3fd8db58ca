"""Every engine that runs here over one artifact, timed in turn, compared and started afresh."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np

from medad_serve.artifact import load_manifest
from medad_serve.bench.agreement import compare, default_cutoff
from medad_serve.bench.engines import Engine, Session, Setup, Subject, engine, engines
from medad_serve.bench.fresh import ColdStart, start_fresh
from medad_serve.bench.inputs import Inputs, inputs_for
from medad_serve.bench.results import Benchmark, Measured, Skipped, Timed, label
from medad_serve.bench.timing import Clock, Turns, in_turns
from medad_serve.errors import MedadError
from medad_serve.evaluation.subject import run_around
from medad_serve.runtime import Outputs, fitting_batch, run_batched
from medad_serve.serving.resources import cores
from medad_serve.spec import Manifest

Say = Callable[[str], None]
MIB = 2**20
TURNS = 9
"""Of each engine at least. A volume of 128^3 has time for three or four of a second, and of so few the ratio of two
engines moved by a fifth from run to run on a shared machine."""


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    batches: tuple[int, ...] = (1, 8)
    threads: tuple[int, ...] = ()
    """Numbers of threads; none means every core."""
    seconds: float = 3.0
    """Of each engine at each batch size and number of threads."""
    device: str = "cpu"
    only: tuple[str, ...] = ()
    """Names of engines; none means all."""
    cold: bool = True
    """Whether every engine is also started in a process of its own."""
    clock: Clock = time.perf_counter

    def sizes(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the batch sizes, none larger than one call takes of items so large."""
        return tuple(sorted({min(batch, fitting_batch(shape)) for batch in self.batches}))

    def counts(self) -> tuple[int, ...]:
        """Return the numbers of threads."""
        return self.threads or (cores(),)


@dataclass(frozen=True)
class _Opened:
    """An engine at one precision, ready to answer, with what it answered."""

    engine: Engine
    setup: Setup
    session: Session
    build_s: float | None
    outputs: Outputs

    @property
    def label(self) -> str:
        return label(self.engine.name, self.setup.precision)

    @property
    def variant(self) -> str:
        return f"{self.engine.key}/{self.setup.precision}"


def bench_engines(artifact: Path, plan: Plan, say: Say = lambda _: None) -> Benchmark:
    """Measure every engine that can run an artifact; what an engine lacks, or how it failed, is told with the rest."""
    manifest = load_manifest(artifact)
    run = run_around(artifact)
    with tempfile.TemporaryDirectory(prefix="medad-bench-") as folder, _compiling_in(_compiled()):
        subject = Subject.of(artifact.resolve(), run.path.resolve() if run else None, Path(folder), manifest)
        return _Bench(manifest, subject, inputs_for(manifest, subject.run), plan, say).measure()


@cache
def _compiled() -> tempfile.TemporaryDirectory[str]:
    """Return a cache for torch's compiler that begins empty and ends with this process.

    What it finds out of the compiler at its first use serves every model of a run.
    """
    return tempfile.TemporaryDirectory(prefix="medad-inductor-")


@contextlib.contextmanager
def _compiling_in(folder: tempfile.TemporaryDirectory[str]) -> Iterator[None]:
    """Keep the user's own cache out: how long compiling takes is measured."""
    variable = "TORCHINDUCTOR_CACHE_DIR"
    before = os.environ.get(variable)
    os.environ[variable] = folder.name
    try:
        yield
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before


class _Bench:
    """One benchmark while it is made."""

    def __init__(self, manifest: Manifest, subject: Subject, inputs: Inputs, plan: Plan, say: Say) -> None:
        self.manifest, self.subject, self.inputs, self.plan, self.say = manifest, subject, inputs, plan, say
        self.sizes = plan.sizes(subject.shape)
        self.times: dict[str, list[Timed]] = {}
        self.skipped: dict[str, Skipped] = {}

    def measure(self) -> Benchmark:
        """Time every engine that opens, then start each anew."""
        first: list[_Opened] = []
        for threads in self.plan.counts():
            opened = list(self._open_all(threads))
            for batch in self.sizes if opened else ():
                self._time(opened, batch, threads)
            first = first or opened
        if not first:
            reasons = "; ".join(f"{each.label}: {each.reason}" for each in self.skipped.values())
            raise MedadError(f"no engine can run {self.subject.artifact} on {self.plan.device}", reasons)
        return Benchmark(
            name=self.manifest.name,
            family=self.manifest.model,
            parameters=self.manifest.parameters,
            shape=self.subject.shape,
            device=self.plan.device,
            inputs=self.inputs.source,
            reference=first[0].label,
            measured=tuple(self._told(each, first[0]) for each in first),
            skipped=tuple(self.skipped.values()),
            fidelity=self.manifest.fidelity,
        )

    def _open_all(self, threads: int) -> Iterator[_Opened]:
        device = self.plan.device
        for each in [engine(name) for name in self.plan.only] or engines().values():
            for precision in each.precisions(device):
                setup = Setup(precision=precision, threads=threads, device=device, batches=self.sizes)
                if reason := self._reason(each, setup):
                    self._skip(each, precision, reason)
                    continue
                try:
                    yield self._open(each, setup)
                except Exception as error:  # one engine that fails must not cost the others
                    self._skip(each, precision, f"failed ({_first_line(error)})")

    def _reason(self, each: Engine, setup: Setup) -> str | None:
        """Return why an engine is not measured."""
        kind = setup.device.partition(":")[0]
        if kind in each.devices:
            return each.missing(self.subject, setup)
        if kind == "cpu":
            return each.missing(self.subject, setup.model_copy(update={"device": "cuda"})) or "for a GPU: --device cuda"
        return "for the CPU alone"

    def _skip(self, each: Engine, precision: str, reason: str) -> None:
        told = Skipped(engine=each.name, precision=precision, reason=reason)
        if told.label not in self.skipped:
            self.say(f"{self.manifest.name}: without {told.label}: {reason}")
        self.skipped.setdefault(told.label, told)

    def _open(self, each: Engine, setup: Setup) -> _Opened:
        """Build and load an engine and have it answer, at every batch size that will be timed."""
        self.say(f"{self.manifest.name}: opening {label(each.name, setup.precision)}")
        start = time.perf_counter()
        each.build(self.subject, setup)
        build_s = time.perf_counter() - start if type(each).build is not Engine.build else None
        session = each.open(self.subject, setup)
        for size in self.sizes:
            session.run(self.inputs.batch(size), self.subject.names)
        outputs = run_batched(session, self.inputs.tensor, self.subject.names, max(self.sizes))
        if not all(np.isfinite(values).all() for values in outputs.values()):
            raise MedadError("its answers are not finite", "Leave it out with --engine")
        return _Opened(each, setup, session, build_s, outputs)

    def _time(self, opened: Sequence[_Opened], batch: int, threads: int) -> None:
        self.say(f"{self.manifest.name}: timing {len(opened)} engines at batch {batch}, {threads} threads")
        items, names = self.inputs.batch(batch), self.subject.names
        tasks = {each.label: partial(each.session.run, items, names) for each in opened}
        resident = {each.label: call for each in opened if (call := each.session.resident(items))}
        turns = in_turns(tasks, self.plan.seconds, self.plan.clock, least=TURNS)
        without_copies = in_turns(resident, self.plan.seconds) if resident else {}
        reference = turns[opened[0].label]
        for name, own in turns.items():
            copied = without_copies.get(name)
            self.times.setdefault(name, []).append(_timed(own, reference, batch, threads, copied))

    def _told(self, each: _Opened, reference: _Opened) -> Measured:
        cutoffs = default_cutoff(self.manifest), default_cutoff(self.manifest, each.variant)
        return Measured(
            engine=each.engine.name,
            precision=each.setup.precision,
            times=tuple(self.times[each.label]),
            disk_mib=sum(file.stat().st_size for file in each.engine.files(self.subject, each.setup)) / MIB,
            build_s=each.build_s,
            cold=self._cold(each) if self.plan.cold else None,
            agreement=compare(each.outputs, reference.outputs, self.subject.outputs, *cutoffs),
        )

    def _cold(self, each: _Opened) -> ColdStart | None:
        self.say(f"{self.manifest.name}: starting {each.label} in a process of its own")
        try:
            return start_fresh(each.engine.name, self.subject.model_dump_json(), each.setup.model_dump_json())
        except MedadError as error:  # what was measured so far stays
            self.say(f"{self.manifest.name}: {error}")
            return None


def _timed(own: Turns, reference: Turns, batch: int, threads: int, resident: Turns | None) -> Timed:
    return Timed(
        batch=batch,
        threads=threads,
        calls=own.calls,
        p50_ms=own.median,
        p95_ms=own.percentile(95),
        p99_ms=own.percentile(99),
        items_per_s=batch * own.calls_per_second(),
        ratio=reference.ratio(own),
        resident_p50_ms=resident.median if resident else None,
    )


def _first_line(error: Exception) -> str:
    if isinstance(error, MedadError):
        return str(error)
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0][:160]}" if said else type(error).__name__
