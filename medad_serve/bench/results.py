"""What a benchmark of engines found, as it is stored and told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pydantic import Field

from medad_serve.bench.fresh import ColdStart
from medad_serve.bench.machine import Machine
from medad_serve.spec import Fidelity, Frozen


class Timed(Frozen):
    """One engine at one batch size and number of threads."""

    batch: int
    threads: int
    calls: int
    p50_ms: float
    p95_ms: float | None
    p99_ms: float | None
    items_per_s: float
    ratio: float
    """Time of the reference over that of this engine, in the median of turns: above 1 it is faster."""
    resident_p50_ms: float | None = None
    """On a GPU, with input and outputs in its memory: without what copies cost."""


class Agreement(Frozen):
    """How far the outputs lie from the reference's."""

    items: int
    relative_difference: float
    """Largest of any float output, relative to the largest magnitude of the same item; of z-scores to 1 at least."""
    codes_differ: float | None
    """Share of integer codes that are others, of models that have some."""
    flips: int
    """Items decided otherwise at the default policy's cutoff, that of the engine's own calibration."""


class Measured(Frozen):
    """One engine at one precision."""

    engine: str
    precision: str
    times: tuple[Timed, ...]
    disk_mib: float
    build_s: float | None
    """To compile in advance what is then loaded."""
    cold: ColdStart | None
    agreement: Agreement

    @property
    def label(self) -> str:
        """What it is called in tables and plots."""
        return label(self.engine, self.precision)

    def at(self, batch: int, threads: int) -> Timed | None:
        """Return what was timed at a batch size and number of threads."""
        return next((t for t in self.times if (t.batch, t.threads) == (batch, threads)), None)


class Skipped(Frozen):
    """An engine that did not run, and why."""

    engine: str
    precision: str
    reason: str

    @property
    def label(self) -> str:
        """What it is called in tables."""
        return label(self.engine, self.precision)


class Benchmark(Frozen):
    """Every engine over one artifact."""

    name: str
    family: str
    parameters: int
    shape: tuple[int, ...]
    device: str
    inputs: str
    """What was answered: held-out items, or random ones."""
    reference: str
    measured: tuple[Measured, ...]
    skipped: tuple[Skipped, ...]
    fidelity: tuple[Fidelity, ...] = ()
    """Of the variants in reduced precision, as their gates found it at export."""
    fidelity_of: str = ""
    """Which model that was, where it was another one."""
    tested: dict[str, float] = Field(default_factory=dict)
    """Its AUROC on items that nothing chose by, by variant."""
    refused: tuple[str, ...] = ()
    """Variants that a gate refused, and why."""

    @property
    def settings(self) -> tuple[tuple[int, int], ...]:
        """Every batch size and number of threads that was timed."""
        return tuple(sorted({(t.batch, t.threads) for each in self.measured for t in each.times}))


class Report(Frozen):
    """Benchmarks of one run, and what they were measured on."""

    machine: Machine
    seconds: float
    """Of each engine at each batch size and number of threads."""
    benchmarks: tuple[Benchmark, ...]
    command: str = "make bench"
    """That makes the page again."""
    left_out: tuple[tuple[str, str], ...] = ()
    """Models that were not measured, and why."""


def label(engine: str, precision: str) -> str:
    """Return what an engine at a precision is called; float32 goes without saying."""
    return engine if precision == "float32" else f"{engine} {precision}"


def told_apart(benchmarks: Sequence[Benchmark]) -> tuple[Benchmark, ...]:
    """Number those of the same name, so that each has tables and a plot of its own."""
    often, seen, out = Counter(each.name for each in benchmarks), Counter[str](), []
    for each in benchmarks:
        seen[each.name] += 1
        name = f"{each.name} {seen[each.name]}" if often[each.name] > 1 else each.name
        out.append(each.model_copy(update={"name": name}))
    return tuple(out)
