"""``bench``: costs beside their floors, and load on a server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from medad_serve.cli.console import out
from medad_serve.cli.serving import FOLDER, STORE


def _numbers(_: click.Context, __: click.Parameter, value: str | None) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in value.split(",")) if value else ()
    except ValueError:
        numbers = (0,)
    if any(number < 1 for number in numbers):
        raise click.BadParameter("give numbers from 1 on, with commas between them")
    return numbers


@click.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path, exists=True))
@click.option("--io", "measure_io", is_flag=True, help="Decode + prepare beside bare pydicom.")
@click.option("--epoch", is_flag=True, help="An epoch over the cache beside one over tensors in memory.")
@click.option("--latency", is_flag=True, help="An answer by onnxruntime and TorchScript beside the eager model.")
@click.option("--step", is_flag=True, help="Time and peak memory of a training step.")
@click.option("--model", "models", multiple=True, help="Repeatable. [default: ae; every model for --latency]")
@click.option("--batch", type=click.IntRange(1), help="[default: 1 for --latency, 2 for --step, 8 for --overhead]")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or auto; of --latency and --step.")
@click.option("--rounds", type=click.IntRange(1), help="[default: 300 for --io, 5 for others, 3 for --overhead]")
@click.option("--http", metavar="URL", help="Load on a running server, of its --model NAME.")
@click.option("--overhead", metavar="ARTIFACT", type=FOLDER, help="What serving costs beside its parts.")
@click.option("--clients", callback=_numbers, help="Of --http and --overhead. [default: 1,4,16,64; 16]")
@click.option("--seconds", type=click.FloatRange(0.1), default=60, show_default=True, help="Of each number of clients.")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Of --overhead.")
@click.option("--store", type=FOLDER, default=STORE, show_default=True, help="Where a local server keeps its tokens.")
@click.option("--key-file", type=click.Path(path_type=Path), help="Token file of the server.")
@click.option("--token", envvar="MEDAD_TOKEN", help="The token itself. [env: MEDAD_TOKEN]")
@click.option("--ca", type=click.Path(path_type=Path), help="PEM file that an https server is checked by.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def bench(
    files: tuple[Path, ...],
    measure_io: bool,
    epoch: bool,
    latency: bool,
    step: bool,
    models: tuple[str, ...],
    batch: int | None,
    device: str,
    rounds: int | None,
    as_json: bool,
    **how: Any,
) -> None:
    """Time decoding, preparing, training data, answers and training steps, in medians of interleaved runs; or a server.

    --io, --http and --overhead read FILES; without any, one 512x512 16-bit uncompressed phantom slice. A folder is one
    series.
    """
    if how["http"] or how["overhead"]:
        from medad_serve.cli.loadbench import bench_serving

        bench_serving(files, models=models, batch=batch or 8, rounds=rounds or 3, as_json=as_json, **how)
        return
    if measure_io or epoch or step:
        from medad_serve.cli.databench import bench_data

        bench_data(
            files,
            measure_io=measure_io,
            epoch=epoch,
            step=step,
            models=models,
            batch=batch or 2,
            device=device,
            rounds=rounds,
            as_json=as_json,
        )
        return
    if latency:
        _bench_latency(models, batch or 1, device, rounds or 5, as_json)
        return
    raise click.UsageError("ask for --io, --epoch, --latency, --step, --http or --overhead")


def _bench_latency(models: tuple[str, ...], batch: int, device: str, rounds: int, as_json: bool) -> None:
    from medad_serve.bench.latency import bench_latency
    from medad_serve.models import families, family

    chosen = [family(name) for name in models] or list(families().values())
    found = {
        f"latency of {each.name}": bench_latency(each, batch=batch, device=device, rounds=rounds) for each in chosen
    }
    out.print(json.dumps(found, indent=1), markup=False)
