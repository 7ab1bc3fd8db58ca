"""What was measured of servers, as tables."""

from __future__ import annotations

from collections.abc import Sequence

from medad_serve.bench.tables import Table
from medad_serve.loadbench import Footprint, Load, Overhead, Series
from medad_serve.loadbench.beside import Beside
from medad_serve.loadbench.stages import STAGES, Breakdown


def load_table(where: str, loads: Sequence[Load]) -> Table:
    """Return what each number of clients met."""
    rows = tuple(
        (load.clients, load.requests, load.throughput, load.p50, load.p95, load.p99, _errors(load)) for load in loads
    )
    columns = ("clients", "requests", "a second", "p50 ms", "p95 ms", "p99 ms", "errors")
    return Table("load", f"load on {where}", columns, rows)


def _errors(load: Load) -> str:
    return ", ".join(f"{count} x {what}" for what, count in load.errors.items()) or "none"


def memory_table(before: Footprint, after: Footprint) -> Table:
    """Return how the memory of a server grew."""
    rows = tuple(
        (name, start, end, f"{end / start - 1:+.1%}")
        for name, start, end in (
            ("TorchServe", before.frontend_mib, after.frontend_mib),
            ("workers", before.workers_mib, after.workers_mib),
        )
    )
    return Table("memory", "resident memory", ("processes", "start MiB", "end MiB", "growth"), rows)


def stage_table(breakdowns: Sequence[Breakdown]) -> Table:
    """Return where the milliseconds of a request go."""
    shown = [stage for stage in STAGES if any(each.stages.get(stage) for each in breakdowns)]
    columns = ("clients", "way", "a second", "CPU ms", "latency ms", *shown)
    rows = tuple(
        (
            each.clients,
            each.way,
            each.throughput,
            each.cpu_ms,
            each.latency_ms,
            *(each.stages.get(stage) for stage in shown),
        )
        for each in breakdowns
    )
    return Table("stages", "where the milliseconds of a request go, mean", columns, rows)


def beside_table(found: Sequence[Beside]) -> Table:
    """Return what a bad file cost its neighbours."""
    rows = tuple((each.way, each.good, each.lost, each.refused) for each in found)
    columns = ("way", "good files beside a bad one", "not answered", "bad ones refused")
    return Table("beside", "good and bad files sent at once", columns, rows)


def overhead_table(cost: Overhead) -> Table:
    """Return what a request costs beside its parts."""
    rows = (
        ("no-op handler, same bytes and configuration", cost.noop_ms, cost.noop_ms / cost.parts_ms),
        ("decode + prepare in process", cost.decode_ms, cost.decode_ms / cost.parts_ms),
        ("batched inference in process", cost.infer_ms, cost.infer_ms / cost.parts_ms),
        ("sum of the parts", cost.parts_ms, 1.0),
        ("handler", cost.handler_ms, cost.ratio),
    )
    title = f"processor time a request, {cost.clients} clients"
    return Table("overhead", title, ("part", "ms", "x the sum"), rows)


def series_table(path: str, speed: Series) -> Table:
    """Return what a series costs as one request."""
    rows = (
        ("in process", speed.in_process, 1.0, speed.in_process_cpu_ms),
        ("over HTTP", speed.http, speed.ratio, speed.http_cpu_ms),
        ("no-op handler, same bytes", speed.noop, speed.noop / speed.in_process, None),
    )
    title = f"{speed.slices} slices as one request: {path}"
    return Table("series", title, ("way", "slices a second", "x in process", "CPU ms a slice"), rows)
