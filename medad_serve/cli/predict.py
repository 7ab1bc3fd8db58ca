"""``predict``: files in, answers of a server or of an artifact out."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import click

from medad_serve.cli.items import Item, items_of
from medad_serve.cli.serving import FOLDER, STORE

HeatmapFormat = Literal["png", "npy", "none"]
Answer = dict[str, Any]
_OF_FILES = ("slices", "left_out")
"""Parts of an answer that tell a ``source``."""
_MOST_NAMES = 3
"""Of files left out for a reason that a table names; ``--json`` tells all."""


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--series", "one_series", is_flag=True, help="All FILES are slices of one series.")
@click.option("--model", help="Ask the running server for this model.")
@click.option("--url", default="http://127.0.0.1:8080", show_default=True)
@click.option(
    "--ca", type=click.Path(path_type=Path), help="PEM file that an https server's certificate is checked by."
)
@click.option("--key-file", type=click.Path(path_type=Path), help="Token file of the server.")
@click.option("--token", envvar="MEDAD_TOKEN", help="The token itself, where there is no file. [env: MEDAD_TOKEN]")
@click.option("--management-url", help="Where tokens are renewed. Default: as the server's settings say.")
@click.option("--store", type=FOLDER, default=STORE, show_default=True, help="Where a local server keeps its tokens.")
@click.option("--concurrency", type=click.IntRange(1), default=8, show_default=True, help="Requests at a time.")
@click.option(
    "--retry-for", type=click.FloatRange(0), default=60, show_default=True, help="Seconds to go on asking; 0: once."
)
@click.option("--artifact", type=FOLDER, help="Predict in this process with an exported model instead.")
@click.option("--runtime", help="Of --artifact, e.g. onnx, openvino/int8 [default: as tuned, else onnx].")
@click.option("--policy", help="Decide by this policy instead of the model's default.")
@click.option("--heatmap", type=FOLDER, help="Write a heatmap for each file into this folder.")
@click.option(
    "--heatmap-format", type=click.Choice(["png", "npy"]), default="png", show_default=True, help="Overlay, or map."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def predict(
    files: tuple[Path, ...],
    one_series: bool,
    heatmap: Path | None,
    heatmap_format: HeatmapFormat,
    as_json: bool,
    **how: Any,
) -> None:
    """Score FILES: with --model by a running server, with --artifact in this process.

    Of a folder, and each below it, the DICOM files of a series are scored together, and every other image or volume
    by itself.
    """
    if (how["model"] is None) == (how["artifact"] is None):
        raise click.UsageError("Give either --model NAME or --artifact DIR.")
    items = items_of(files, one_series=one_series)
    answers = (_in_process if how["artifact"] else _by_server)(items, heatmap_format if heatmap else "none", how)
    answers = _naming_files(items, answers)
    if heatmap:
        answers = _save_heatmaps(items, answers, heatmap)
    unanswered: list[int] = []
    answers = _noting_unanswered(answers, unanswered)
    failed = (_print_lines if as_json else _print_table)(items, answers)
    if unanswered:
        click.echo(f"{len(unanswered)} of {len(items)} were never answered:", err=True)
        for position in unanswered:
            click.echo(f"  {position + 1}: {items[position].path}", err=True)
    if failed:
        raise SystemExit(1)  # click returns its own Exit where main() catches errors


def _in_process(items: Iterable[Item], heatmap: HeatmapFormat, how: dict[str, Any]) -> Iterator[Answer]:
    """Predict item by item: what is held in memory does not grow with their number."""
    from medad_serve.artifact import locate
    from medad_serve.errors import InputError
    from medad_serve.predictor import Options, Predictor

    predictor = Predictor.load(locate(how["artifact"]), runtime=how["runtime"])
    options = [Options(heatmap=heatmap, policy=how["policy"])]
    for item in items:
        try:
            parts = tuple(file.read_bytes() for file in item.files)  # as the server gets it: both answer alike
        except OSError as error:
            yield InputError(400, f"the file cannot be read ({error.strerror})", "Check the path").to_json()
            continue
        yield predictor.predict([parts if item.is_series else parts[0]], options)[0].to_json()


def _by_server(items: Sequence[Item], heatmap: HeatmapFormat, how: dict[str, Any]) -> Iterator[Answer]:
    from medad_serve.client import Client, Retries, find_key_file

    key_file = how["key_file"] or (None if how["token"] else find_key_file(how["url"], how["store"]))
    with Client(
        how["url"],
        key_file=key_file,
        token=how["token"],
        management_url=how["management_url"],
        ca=how["ca"],
        retries=Retries(total_s=how["retry_for"]) if how["retry_for"] else Retries(tries=1),
    ) as client:
        yield from client.predict_many(
            [item.source for item in items],
            how["model"],
            heatmap=None if heatmap == "none" else heatmap,
            policy=how["policy"],
            concurrency=how["concurrency"],
        )


def _naming_files(items: Iterable[Item], answers: Iterable[Answer]) -> Iterator[Answer]:
    """Add to each slice, and to each file left out, its name: servers are sent none and tell the place of each."""
    for item, answer in zip(items, answers, strict=True):
        if item.is_series:
            names = dict(enumerate(map(str, item.files)))
            named = {key: [_named(part, names) for part in answer[key]] for key in _OF_FILES if key in answer}
            answer = {**answer, **named}
        yield answer


def _named(part: Answer, names: Mapping[int, str]) -> Answer:
    file = names.get(part.get("source", -1))
    return {**part, "file": file} if file else part


def _save_heatmaps(items: Sequence[Item], answers: Iterable[Answer], folder: Path) -> Iterator[Answer]:
    """Write each heatmap under its item's name, over neither input nor sibling, and put the path in its place."""
    folder.mkdir(parents=True, exist_ok=True)
    taken = {file.resolve() for item in items for file in item.files}
    numbers = [""] + [f"-{n}" for n in range(2, len(taken) + len(items) + 2)]
    for item, answer in zip(items, answers, strict=True):
        if "heatmap" in answer:
            suffix = answer["heatmap"]["format"]
            names = (f"{item.path.name or item.path.resolve().name}{number}.{suffix}" for number in numbers)
            path = next(folder / name for name in names if (folder / name).resolve() not in taken)
            taken.add(path.resolve())
            path.write_bytes(base64.b64decode(answer["heatmap"]["data"]))
            kept = {key: value for key, value in answer["heatmap"].items() if key != "data"}
            answer = {**answer, "heatmap": {**kept, "file": str(path)}}
        yield answer


def _noting_unanswered(answers: Iterable[Answer], unanswered: list[int]) -> Iterator[Answer]:
    for position, answer in enumerate(answers):
        if not answer.get("answered", True):
            unanswered.append(position)
        yield answer


def _print_lines(items: Iterable[Item], answers: Iterable[Answer]) -> int:
    failed = 0
    for item, answer in zip(items, answers, strict=True):
        failed += "error" in answer
        click.echo(json.dumps({**item.facts(), **answer}))
    return failed


def _print_table(items: Iterable[Item], answers: Iterable[Answer]) -> int:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    answers, stopped = _collected(answers)
    told = [name for name in ("probability", "severity") if any(name in answer for answer in answers)]
    whole_names = Column("file", overflow="fold")
    table = Table(whole_names, "score", "p-value", "cutoff", *told, "decision", box=None, pad_edge=False)
    failed, untold = 0, [""] * len(told)
    notes: dict[str, None] = {}
    unused: list[str] = []
    for item, answer in zip(items, answers, strict=stopped is None):
        if fault := answer.get("error"):
            failed += 1
            table.add_row(
                escape(item.label), "", "", "", *untold, f"[red]{fault['code']}[/] {escape(_sentence(fault))}"
            )
            continue
        numbers = [f"{answer[key]:.4g}" for key in ("score", "p_value", "cutoff")]
        numbers += [f"{answer[key]:.4g}" if key in answer else "" for key in told]
        table.add_row(escape(item.label), *numbers, _decision(answer))
        for region in answer.get("regions", ()):
            table.add_row(f"  {escape(region['region'])}", *_figures(region), "", *untold, _decision(region))
        if slices := [part for part in answer.get("slices", ()) if "file" in part]:
            highest = max(slices, key=lambda part: part["score"])
            table.add_row(f"  highest: {escape(highest['file'])}", *_figures(highest), "", *untold, _decision(highest))
        notes |= dict.fromkeys(answer.get("warnings", ()))
        unused += _left_out(item, answer)
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 10_000  # a line a file for whatever reads it
    console.print(table)
    for note in notes:
        console.print(f"Warning: {escape(note)}")
    for line in unused:
        console.print(escape(line))
    if stopped is not None:
        raise stopped
    return failed


def _left_out(item: Item, answer: Answer) -> Iterator[str]:
    """Yield a line that names what was left out, for each reason."""
    names: dict[str, list[str]] = {}
    for part in answer.get("left_out", ()):
        names.setdefault(part["reason"], []).append(part.get("file", f"file {part['source']}"))
    for reason, files in names.items():
        more = len(files) - _MOST_NAMES
        told = ", ".join(files[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
        yield f"Left out of {item.path}: {told} ({reason})"


def _figures(part: Answer) -> list[str]:
    return [f"{part[key]:.4g}" for key in ("score", "p_value")]


def _decision(part: Answer) -> str:
    return "[bold]anomalous[/]" if part["anomalous"] else "normal"


def _collected(answers: Iterable[Answer]) -> tuple[list[Answer], BaseException | None]:
    """Return what is answered, all of it or until the user, or a fault, puts an end to it."""
    collected: list[Answer] = []
    try:
        for answer in answers:
            collected.append(answer)
    except (KeyboardInterrupt, Exception) as end:
        if not collected:
            raise
        return collected, end
    return collected, None


def _sentence(fault: dict[str, Any]) -> str:
    return f"{fault['message']}. {fault['hint']}" if fault.get("hint") else str(fault["message"])
