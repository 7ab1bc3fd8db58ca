"""``bench``: engines beside each other, costs beside their floors, and load on a server."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from medad_serve.cli.serving import FOLDER, STORE

LOAD_SECONDS = 60.0
NEW_FOLDER = click.Path(path_type=Path, file_okay=False)


def _numbers(_: click.Context, __: click.Parameter, value: str | None) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in value.split(",")) if value else ()
    except ValueError:
        numbers = (0,)
    if any(number < 1 for number in numbers):
        raise click.BadParameter("give numbers from 1 on, with commas between them")
    return numbers


def _device(_: click.Context, __: click.Parameter, value: str) -> str:
    if not re.fullmatch(r"cpu|auto|cuda(:\d+)?", value):
        raise click.BadParameter("give cpu, auto, cuda, or cuda:N for GPU number N")
    return value


def _refuse_all_but(*known: str) -> None:
    context = click.get_current_context()
    given = {name for name in context.params if context.get_parameter_source(name) == ParameterSource.COMMANDLINE}
    if given - set(known):
        raise click.UsageError("--all with --io or --epoch takes --docs and --seconds alone: leave everything else out")


@click.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path, exists=True))
@click.option(
    "--io", "measure_io", is_flag=True, help="Decode + prepare of every encoding beside its floors; or of FILES."
)
@click.option("--epoch", is_flag=True, help="Training steps over the cache, by the trainer, in bf16.")
@click.option("--step", is_flag=True, help="Time and peak memory of a training step.")
@click.option(
    "--all",
    "every_model",
    is_flag=True,
    help="Engines over every model, each trained twice, small and as the quickstart does (an hour and a half in all); "
    "a page of it. With --io or --epoch: that part of the page anew.",
)
@click.option("--check", is_flag=True, help="Fail where an engine is slower than --docs says.")
@click.option("--batches", callback=_numbers, help="Of engines. [default: 1,8]")
@click.option("--threads-list", "threads", callback=_numbers, help="Of engines. [default: every core]")
@click.option("--engine", "only", multiple=True, help="Repeatable. [default: every one that runs here]")
@click.option("--cold/--no-cold", default=True, help="Start each engine in a process of its own too. [default: cold]")
@click.option("--out", "to", type=NEW_FOLDER, help="Folder for the figures: JSON, CSV, Markdown, plots.")
@click.option("--docs", type=NEW_FOLDER, default="docs", show_default=True, help="Of --all and --check.")
@click.option("--runs", type=NEW_FOLDER, default="runs/bench", show_default=True, help="Where --all keeps its runs.")
@click.option("--model", "models", multiple=True, help="Repeatable. [default: ae; of --all and --check every one]")
@click.option("--batch", type=click.IntRange(1), help="[default: 2 for --step, 8 for --overhead]")
@click.option(
    "--device", default="cpu", show_default=True, callback=_device, help="cpu, auto, cuda or cuda:N; engines, --step."
)
@click.option("--rounds", type=click.IntRange(1), help="Of --overhead. [default: 3]")
@click.option("--http", metavar="URL|ARTIFACT", help="Load on a running server, or an artifact served in several ways.")
@click.option("--litserve", is_flag=True, help="Of --http ARTIFACT: LitServe, too.")
@click.option("--overhead", metavar="ARTIFACT", type=FOLDER, help="What serving costs beside its parts.")
@click.option("--clients", callback=_numbers, help="Of --http and --overhead. [default: 1,4,16,64; 16]")
@click.option(
    "--seconds",
    type=click.FloatRange(0.1),
    help="Of each number of clients [default: 60], or of each engine, batch size and number of threads "
    "[default: 3]; of each task of --io [default: 0.2] and --epoch [default: 3].",
)
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
    step: bool,
    every_model: bool,
    check: bool,
    batches: tuple[int, ...],
    threads: tuple[int, ...],
    only: tuple[str, ...],
    cold: bool,
    to: Path | None,
    docs: Path,
    runs: Path,
    models: tuple[str, ...],
    batch: int | None,
    device: str,
    rounds: int | None,
    seconds: float | None,
    as_json: bool,
    **how: Any,
) -> None:
    """Time what answering, decoding, preparing, training and serving cost, in turns with what it is held against.

    FILES are artifacts (or runs): every engine that runs here is measured over each, from PyTorch to onnxruntime,
    OpenVINO and TensorRT. --io, --http and --overhead read files instead; without any, --io makes a slice in every
    encoding, the others one of 512x512, 16 bit and uncompressed. Of a folder, a series is one request.
    """
    if how["http"] or how["overhead"]:
        from medad_serve.cli.loadbench import bench_serving

        how["seconds"] = seconds or LOAD_SECONDS
        bench_serving(files, models=models, batch=batch or 8, rounds=rounds or 3, to=to, as_json=as_json, **how)
        return
    if every_model and (measure_io or epoch):
        from medad_serve.cli.enginebench import renew

        _refuse_all_but("every_model", "measure_io", "epoch", "docs", "seconds")
        renew(docs, io=measure_io, epoch=epoch, seconds=seconds)
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
            seconds=seconds,
            to=to,
            as_json=as_json,
        )
        return
    if not (files or every_model or check):
        raise click.UsageError("name artifacts, or ask for --all, --check, --io, --epoch, --step, --http or --overhead")
    if files and (every_model or check):
        raise click.UsageError("--all and --check measure small runs of their own: leave FILES out, or name --model")
    if check and (only or threads or batches):
        raise click.UsageError("--check measures what the committed page holds: choose by --model alone")
    from medad_serve.cli.enginebench import bench_artifacts, bench_families, check_families

    if check:
        check_families(models, runs=runs, docs=docs, as_json=as_json)
        return
    engines: dict[str, Any] = {"batches": batches, "threads": threads, "device": device, "only": only, "cold": cold}
    engines |= {"seconds": seconds, "as_json": as_json}
    if every_model:
        bench_families(models, runs=runs, docs=docs, **engines)
    else:
        bench_artifacts(files, to=to, **engines)
