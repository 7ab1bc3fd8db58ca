"""Ways to answer the same bytes, in turn in one run: in process, a handler that does nothing, ours, LitServe."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import psutil

from medad_serve.errors import MedadError
from medad_serve.loadbench.beside import Beside, measure_beside
from medad_serve.loadbench.closed_loop import Load, Sent, Target, put_load
from medad_serve.loadbench.counters import Counters, read_counters
from medad_serve.loadbench.footprint import Footprint
from medad_serve.loadbench.litserved import LitServed
from medad_serve.loadbench.served import MODEL, NOOP, WARM_S, Serving
from medad_serve.loadbench.stages import Breakdown, in_process, pooled, split

NOTHING, OURS, LITSERVE = "no-op handler", "medad-serve", "LitServe"


def measure_ways(
    served: Serving,
    bodies: Sequence[Sent],
    *,
    clients: Sequence[int] = (1, 16),
    seconds: float = 10,
    rounds: int = 3,
    litserved: LitServed | None = None,
) -> list[Breakdown]:
    """Return where the time of a request goes, by number of clients and way, pooled over rounds."""
    served.warm_up(bodies, max(clients), 2 * seconds)
    if litserved is not None:
        litserved.target().check(bodies[0])
        put_load(litserved.target(), bodies, max(clients), min(seconds, WARM_S))
    ways: list[Callable[[int], Breakdown]] = [
        lambda number: in_process(served.predictor, bodies, number, served.batch, seconds),
        lambda number: _torchserve(served, NOOP, bodies, number, seconds),
        lambda number: _torchserve(served, MODEL, bodies, number, seconds),
    ]
    if litserved is not None:
        lit = litserved
        ways.append(lambda number: _litserve(lit, bodies, number, seconds))
    found: dict[tuple[int, int], list[Breakdown]] = {}
    for _ in range(rounds):
        for number in clients:
            for way, measure in enumerate(ways):
                found.setdefault((number, way), []).append(measure(number))
    return [pooled(parts) for parts in found.values()]


def _torchserve(served: Serving, model: str, bodies: Sequence[Sent], clients: int, seconds: float) -> Breakdown:
    before, cpu_s = served.counters(model), Footprint.of(served.frontend).cpu_s
    load = served.loaded(model, bodies, clients, seconds, timed=True)
    counters = served.counters(model).since(before)
    name = OURS if model == MODEL else NOTHING
    return _breakdown(name, load, split(load, counters), Footprint.of(served.frontend).cpu_s - cpu_s)


def _litserve(served: LitServed, bodies: Sequence[Sent], clients: int, seconds: float) -> Breakdown:
    cpu_s = Footprint.of(served.process).cpu_s
    load = put_load(served.target(), bodies, clients, seconds)
    if load.errors:
        raise MedadError(f"LitServe did not answer all: {load.errors}", "Run it again")
    return _breakdown(LITSERVE, load, split(load), Footprint.of(served.process).cpu_s - cpu_s)


def _breakdown(way: str, load: Load, stages: dict[str, float], cpu_s: float | None) -> Breakdown:
    return Breakdown(
        way=way,
        clients=load.clients,
        requests=load.requests,
        throughput=load.throughput,
        latency_ms=load.mean,
        cpu_ms=None if cpu_s is None else cpu_s * 1e3 / load.requests,
        stages=stages,
    )


def measure_running(
    target: Target,
    bodies: Sequence[Sent],
    clients: int,
    seconds: float,
    metrics_url: str | None,
    frontend: psutil.Process | None,
) -> tuple[Load, Breakdown]:
    """Put load on a server that is there: what its clients met, and where their time went, as far as it tells."""

    def counters() -> Counters | None:
        return read_counters(metrics_url, target.model, target.ca) if metrics_url else None

    def cpu_s() -> float | None:
        return Footprint.of(frontend).cpu_s if frontend else None

    counted, spent = counters(), cpu_s()
    load = put_load(target, bodies, clients, seconds)
    after, spent_after = counters(), cpu_s()
    waits = after.since(counted) if after and counted else None
    cost = None if spent is None or spent_after is None else spent_after - spent
    return load, _breakdown(target.model or target.url, load, split(load, waits), cost)


def measure_neighbours(served: Serving, good: Sent, litserved: LitServed | None = None) -> list[Beside]:
    """Have good and bad files share batches of every server."""
    found = [measure_beside(OURS, served.target(MODEL), good)]
    if litserved is not None:
        found.append(measure_beside(LITSERVE, litserved.target(), good))
        refusing = f"{LITSERVE}, refusing by HTTPException"
        found.append(measure_beside(refusing, litserved.target(raises=True), good))
    return found
