"""``bench --http`` and ``bench --overhead``: what is measured of a server, printed and written."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from medad_serve.cli.console import out, say, table
from medad_serve.cli.items import Item, items_of
from medad_serve.errors import MedadError
from medad_serve.files import whole_directory, write_whole

if TYPE_CHECKING:
    from medad_serve.bench.tables import Table
    from medad_serve.loadbench import Sent, Target

DEFAULT_CLIENTS = (1, 4, 16, 64)
STAGE_CLIENTS = (1, 16)
OVERHEAD_CLIENTS = 16
WARM_S = 40.0
"""Java's heap grows for half a minute of load: what it takes afterwards is what is compared."""
RECORD, PAGE = "serving.json", "serving.md"


@dataclass
class Findings:
    """What was measured: as data, as tables and as plots by file name."""

    data: dict[str, Any] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    plots: dict[str, Callable[[Path], None]] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write all of it into a folder, whole or not at all."""
        with whole_directory(folder) as beside:
            write_whole(beside / RECORD, json.dumps(self.data, indent=1) + "\n")
            for each in self.tables:
                write_whole(beside / f"{each.name}.csv", each.csv())
            for name, draw in self.plots.items():
                draw(beside / name)
            parts = [f"## {each.title}\n\n{each.markdown()}" for each in self.tables]
            parts += [f"![{Path(name).stem}]({name})\n" for name in self.plots]
            write_whole(beside / PAGE, "\n".join(parts))


def bench_serving(
    files: Sequence[Path],
    *,
    http: str | None,
    overhead: Path | None,
    models: Sequence[str],
    clients: tuple[int, ...],
    seconds: float,
    batch: int,
    rounds: int,
    workers: int,
    litserve: bool,
    to: Path | None,
    as_json: bool,
    **access: Any,
) -> None:
    """Measure and tell: load on a running server, ways to serve an artifact, what serving it costs."""
    from medad_serve.bench.machine import this_machine

    if to is not None:
        _refuse_other(to)
    found = Findings({"machine": this_machine().model_dump(mode="json")})
    items = items_of(files)
    own: dict[str, Any] = {"seconds": seconds, "batch": batch, "rounds": rounds, "workers": workers}
    if http and "://" in http:
        if len(models) != 1:
            raise click.UsageError("Name the model that the server serves with --model NAME.")
        _load(found, http, models[0], items, clients or DEFAULT_CLIENTS, seconds, access)
    elif http and not Path(http).is_dir():
        raise MedadError(f"{http} is neither an address nor an artifact", "Give one such as http://127.0.0.1:8080")
    elif http:
        _compare(found, Path(http), items, clients=clients or STAGE_CLIENTS, litserve=litserve, **own)
    if overhead:
        _overhead(found, overhead, items, clients=clients[0] if clients else OVERHEAD_CLIENTS, **own)
    if as_json:
        out.print(json.dumps(found.data, indent=1), markup=False)
    else:
        _print(found)
    if to is not None:
        found.write(to)
        say(f"written to {to}")


def _refuse_other(to: Path) -> None:
    if to.exists() and not (to / RECORD).is_file() and (not to.is_dir() or any(to.iterdir())):
        raise MedadError(f"{to} holds something else", "Give --out a folder that is new or empty")


def _print(found: Findings) -> None:
    for each in found.tables:
        rows = table(each.title, *each.columns)
        for row in each.shown():
            rows.add_row(*row)
        out.print(rows)


def _sent(items: Sequence[Item]) -> list[Sent]:
    from medad_serve.client.packing import body_of
    from medad_serve.loadbench import Sent
    from medad_serve.loadbench.phantom import slice_bytes

    bodies = [body_of(item.source) for item in items]
    packed = [Sent(content if isinstance(content, bytes) else b"".join(content), kind) for content, kind in bodies]
    return packed or [Sent(slice_bytes())]


def _slices(items: Sequence[Item]) -> list[Sent]:
    """Return the single files; of series alone, their files one by one."""
    singles = [item for item in items if not item.is_series]
    return _sent(singles or [Item(file, (file,)) for item in items for file in item.files])


def _load(
    found: Findings,
    url: str,
    model: str,
    items: list[Item],
    clients: Sequence[int],
    seconds: float,
    access: dict[str, Any],
) -> None:
    from medad_serve.cli.loadtables import load_table, memory_table, stage_table
    from medad_serve.loadbench import Footprint, find_frontend, put_load
    from medad_serve.loadbench.compare import measure_running
    from medad_serve.loadbench.plots import plot_loads, plot_stages

    bodies = _sent(items)
    target, metrics = _target(url, model, items, bodies, access)
    target.check(bodies[0])
    frontend = find_frontend(url)
    put_load(target, bodies, max(clients), min(seconds, WARM_S))
    before = Footprint.of(frontend) if frontend else None
    loads, stages = [], []
    for number in clients:
        say(f"{number} clients, {seconds:g} s")
        load, breakdown = measure_running(target, bodies, number, seconds, metrics, frontend)
        loads.append(load)
        stages.append(breakdown)
    found.data |= {"load": [asdict(load) for load in loads], "stages": [asdict(each) for each in stages]}
    found.tables += [load_table(f"{model} at {url}", loads), stage_table(stages)]
    found.plots |= {
        "load.png": lambda path: plot_loads(loads, path),
        "stages.png": lambda path: plot_stages(stages, path),
    }
    if frontend and before:
        after = Footprint.of(frontend)
        found.data["memory"] = {"before": asdict(before), "after": asdict(after)}
        found.tables.append(memory_table(before, after))


def _target(
    url: str, model: str, items: Sequence[Item], bodies: Sequence[Sent], access: dict[str, Any]
) -> tuple[Target, str | None]:
    """Return how to reach a server and its metrics: TorchServe with its token, or whatever answers under a path."""
    from medad_serve.client import Client, find_key_file
    from medad_serve.loadbench import Target

    if urlsplit(url).path.rstrip("/"):
        return Target(url, model, access["token"], access["ca"], timed=True), None
    key_file = access["key_file"] or (None if access["token"] else find_key_file(url, access["store"]))
    with Client(url, key_file=key_file, token=access["token"], ca=access["ca"]) as client:
        client.predict(items[0].source if items else bodies[0].body, model)  # renews an old token
        return Target(url, model, client.token(), access["ca"], timed=True), _metrics_url(url, key_file)


def _metrics_url(url: str, key_file: Path | None) -> str:
    """Return where the server of a token file says that its metrics are, or two ports above as by default."""
    from medad_serve.export.store import PROPERTIES, read_properties

    settings = key_file.parent / PROPERTIES if key_file else None
    parts = urlsplit(url)
    usual = f"{parts.scheme}://{parts.hostname}:{(parts.port or 80) + 2}"
    return read_properties(settings).get("metrics_address", usual) if settings and settings.is_file() else usual


def _compare(
    found: Findings,
    artifact: Path,
    items: Sequence[Item],
    *,
    clients: Sequence[int],
    litserve: bool,
    seconds: float,
    batch: int,
    rounds: int,
    workers: int,
) -> None:
    from contextlib import ExitStack

    from medad_serve.artifact import locate
    from medad_serve.cli.loadtables import beside_table, stage_table
    from medad_serve.loadbench import serving
    from medad_serve.loadbench.compare import measure_neighbours, measure_ways
    from medad_serve.loadbench.litserved import check_litserve, litserving
    from medad_serve.loadbench.plots import plot_stages

    if litserve:
        check_litserve()
    bodies = _slices(items)
    how = {"workers": workers, "batch_size": batch, "max_batch_delay_ms": 1}
    with ExitStack() as stack:
        where = locate(artifact)
        served = stack.enter_context(serving(where, **how))
        other = stack.enter_context(litserving(where, **how)) if litserve else None
        say(f"{rounds} rounds of {seconds:g} s for each way and number of clients")
        stages = measure_ways(served, bodies, clients=clients, seconds=seconds, rounds=rounds, litserved=other)
        beside = measure_neighbours(served, bodies[0], other)
    found.data |= {"stages": [asdict(each) for each in stages], "beside": [asdict(each) for each in beside]}
    found.tables += [stage_table(stages), beside_table(beside)]
    found.plots["stages.png"] = lambda path: plot_stages(stages, path)


def _overhead(
    found: Findings,
    artifact: Path,
    items: Sequence[Item],
    *,
    clients: int,
    seconds: float,
    batch: int,
    rounds: int,
    workers: int,
) -> None:
    from medad_serve.artifact import locate
    from medad_serve.cli.loadtables import overhead_table, series_table
    from medad_serve.loadbench import measure_overhead, measure_series, serving

    with serving(locate(artifact), workers=workers, batch_size=batch) as served:
        say(f"{rounds} rounds of {seconds:g} s for each handler")
        cost = measure_overhead(served, _slices(items), clients=clients, seconds=seconds, rounds=rounds)
        asked = {"seconds": seconds, "rounds": rounds, "batch": batch, "workers": workers}
        found.data["overhead"] = {**asdict(cost), "parts_ms": cost.parts_ms, "ratio": cost.ratio, **asked}
        found.tables.append(overhead_table(cost))
        for item in items:
            if item.is_series:
                speed = measure_series(served, _sent([item])[0], [file.read_bytes() for file in item.files])
                told = {"path": str(item.path), **asdict(speed), "ratio": speed.ratio}
                found.data.setdefault("series", []).append(told)
                found.tables.append(series_table(str(item.path), speed))
