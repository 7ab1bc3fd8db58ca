"""``bench --http`` and ``bench --overhead``: what is measured of a server, printed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medad_serve.cli.console import out, say, table
from medad_serve.cli.items import Item, items_of

if TYPE_CHECKING:
    from rich.table import Table

    from medad_serve.loadbench import Footprint, Sent

DEFAULT_CLIENTS = (1, 4, 16, 64)
OVERHEAD_CLIENTS = 16
WARM_S = 20.0


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
    as_json: bool,
    **access: Any,
) -> None:
    """Measure and print: load on a running server, the cost of serving an artifact, or both."""
    found: dict[str, Any] = {}
    if http:
        if len(models) != 1:
            raise click.UsageError("Name the model that the server serves with --model NAME.")
        found |= _load(http, models[0], items_of(files), clients or DEFAULT_CLIENTS, seconds, access, as_json)
    if overhead:
        found |= _overhead(
            overhead,
            files,
            clients=clients[0] if clients else OVERHEAD_CLIENTS,
            seconds=seconds,
            batch=batch,
            rounds=rounds,
            workers=workers,
            quiet=as_json,
        )
    if as_json:
        out.print(json.dumps(found, indent=1), markup=False)


def _sent(items: Sequence[Item]) -> list[Sent]:
    from medad_serve.bench.io import slice_bytes
    from medad_serve.client.packing import body_of
    from medad_serve.loadbench import Sent

    bodies = [body_of(item.source) for item in items]
    packed = [Sent(content if isinstance(content, bytes) else b"".join(content), kind) for content, kind in bodies]
    return packed or [Sent(slice_bytes())]


def _load(
    url: str,
    model: str,
    items: list[Item],
    clients: Sequence[int],
    seconds: float,
    access: dict[str, Any],
    quiet: bool,
) -> dict[str, Any]:
    from medad_serve.client import Client, find_key_file
    from medad_serve.loadbench import Footprint, Target, find_frontend, put_load

    bodies = _sent(items)
    key_file = access["key_file"] or (None if access["token"] else find_key_file(url, access["store"]))
    with Client(url, key_file=key_file, token=access["token"], ca=access["ca"]) as client:
        client.predict(items[0].source if items else bodies[0].body, model)  # renews an old token
        target = Target(url, model, client.token(), access["ca"])
    target.check(bodies[0])
    frontend = find_frontend(url)
    put_load(target, bodies, max(clients), min(seconds, WARM_S))
    rows = table(f"load on {model} at {url}", "clients", "requests", "a second", "p50 ms", "p95", "p99", "errors")
    before = Footprint.of(frontend) if frontend else None
    loads = []
    for number in clients:
        say(f"{number} clients, {seconds:g} s")
        loads.append(load := put_load(target, bodies, number, seconds))
        figures = [f"{value:.1f}" for value in (load.throughput, load.p50, load.p95, load.p99)]
        told = ", ".join(f"{count} x {what}" for what, count in load.errors.items()) or "0"
        rows.add_row(str(number), str(load.requests), *figures, told)
    found: dict[str, Any] = {"load": [asdict(load) for load in loads]}
    if not quiet:
        out.print(rows)
    if frontend and before:
        after = Footprint.of(frontend)
        memory = {"before": asdict(before), "after": asdict(after)}
        found |= {"memory": memory}
        if not quiet:
            out.print(_memory(before, after))
    return found


def _memory(before: Footprint, after: Footprint) -> Table:
    rows = table("resident memory", "processes", "start MiB", "end MiB", "growth")
    for name, start, end in (
        ("TorchServe", before.frontend_mib, after.frontend_mib),
        ("workers", before.workers_mib, after.workers_mib),
    ):
        rows.add_row(name, f"{start:.0f}", f"{end:.0f}", f"{end / start - 1:+.1%}")
    return rows


def _overhead(
    artifact: Path,
    files: Sequence[Path],
    *,
    clients: int,
    seconds: float,
    batch: int,
    rounds: int,
    workers: int,
    quiet: bool,
) -> dict[str, Any]:
    from medad_serve.artifact import locate
    from medad_serve.loadbench import measure_overhead, measure_series, serving

    items = items_of(files)
    slices = _sent([item for item in items if not item.is_series])
    found: dict[str, Any] = {}
    with serving(locate(artifact), workers=workers, batch_size=batch) as served:
        say(f"{rounds} rounds of {seconds:g} s for each handler")
        cost = measure_overhead(served, slices, clients=clients, seconds=seconds, rounds=rounds)
        found["overhead"] = {**asdict(cost), "parts_ms": cost.parts_ms, "ratio": cost.ratio}
        for item in items:
            if item.is_series:
                speed = measure_series(served, _sent([item])[0], [file.read_bytes() for file in item.files])
                found.setdefault("series", []).append({"path": str(item.path), **asdict(speed), "ratio": speed.ratio})
    if not quiet:
        _print_overhead(found)
    return found


def _print_overhead(found: dict[str, Any]) -> None:
    cost = found["overhead"]
    rows = table(f"processor time a request, {cost['clients']} clients", "part", "ms")
    rows.add_row("no-op handler, same bytes and configuration", f"{cost['noop_ms']:.2f}")
    rows.add_row("decode + prepare in process", f"{cost['decode_ms']:.2f}")
    rows.add_row("batched inference in process", f"{cost['infer_ms']:.2f}")
    rows.add_row("sum of the parts", f"{cost['parts_ms']:.2f}")
    rows.add_row("handler", f"{cost['handler_ms']:.2f}  ({cost['ratio']:.2f} x the sum)")
    out.print(rows)
    for speed in found.get("series", ()):
        rows = table(
            f"{speed['slices']} slices as one request: {speed['path']}", "way", "slices a second", "CPU ms a slice"
        )
        rows.add_row("in process", f"{speed['in_process']:.1f}", f"{speed['in_process_cpu_ms']:.2f}")
        rows.add_row("over HTTP", f"{speed['http']:.1f}  ({speed['ratio']:.2f} x)", f"{speed['http_cpu_ms']:.2f}")
        out.print(rows)
