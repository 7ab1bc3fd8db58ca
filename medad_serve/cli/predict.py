"""``predict``: files in, answers of a server or of an artifact out."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import click

from medad_serve.cli.serving import FOLDER, STORE

Answer = dict[str, Any]


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--model", help="Ask the running server for this model.")
@click.option("--url", default="http://127.0.0.1:8080", show_default=True)
@click.option("--key-file", type=click.Path(path_type=Path), help="Token file of the server.")
@click.option("--token", envvar="MEDAD_TOKEN", help="The token itself, where there is no file. [env: MEDAD_TOKEN]")
@click.option("--management-url", help="Where tokens are renewed. Default: as the server's settings say.")
@click.option("--store", type=FOLDER, default=STORE, show_default=True, help="Where a local server keeps its tokens.")
@click.option("--concurrency", type=click.IntRange(1), default=8, show_default=True, help="Requests at a time.")
@click.option("--artifact", type=FOLDER, help="Predict in this process with an exported model instead.")
@click.option("--runtime", type=click.Choice(["onnx", "torchscript"]), default="onnx", show_default=True)
@click.option("--policy", help="Decide by this policy instead of the model's default.")
@click.option("--heatmap", type=FOLDER, help="Write an overlay PNG for each file into this folder.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def predict(files: tuple[Path, ...], heatmap: Path | None, as_json: bool, **how: Any) -> None:
    """Score FILES: with --model by a running server, with --artifact in this process."""
    if (how["model"] is None) == (how["artifact"] is None):
        raise click.UsageError("Give either --model NAME or --artifact DIR.")
    wanted: Literal["png", "none"] = "png" if heatmap else "none"
    source = _in_process if how["artifact"] else _by_server
    answers = source(files, wanted, how)
    if heatmap:
        answers = _save_heatmaps(files, answers, heatmap)
    failed = (_print_lines if as_json else _print_table)(files, answers)
    if failed:
        raise SystemExit(1)  # click returns its own Exit where main() catches errors


def _in_process(files: Iterable[Path], heatmap: Literal["png", "none"], how: dict[str, Any]) -> Iterator[Answer]:
    """Predict file by file: what is held in memory does not grow with their number."""
    from medad_serve.artifact import locate
    from medad_serve.errors import InputError
    from medad_serve.predictor import Options, Predictor

    predictor = Predictor.load(locate(how["artifact"]), runtime=how["runtime"])
    options = [Options(heatmap=heatmap, policy=how["policy"])]
    for file in files:
        try:
            body = file.read_bytes()  # as the server gets it, so that both answer alike
        except OSError as error:
            yield InputError(400, f"the file cannot be read ({error.strerror})", "Check the path").to_json()
            continue
        yield predictor.predict([body], options)[0].to_json()


def _by_server(files: tuple[Path, ...], heatmap: Literal["png", "none"], how: dict[str, Any]) -> Iterator[Answer]:
    from medad_serve.client import Client, find_key_file

    key_file = how["key_file"] or (None if how["token"] else find_key_file(how["url"], how["store"]))
    asked = None if heatmap == "none" else heatmap
    with Client(how["url"], key_file=key_file, token=how["token"], management_url=how["management_url"]) as client:
        yield from client.predict_many(
            files, how["model"], heatmap=asked, policy=how["policy"], concurrency=how["concurrency"]
        )


def _save_heatmaps(files: tuple[Path, ...], answers: Iterable[Answer], folder: Path) -> Iterator[Answer]:
    """Write each overlay under its file's name, over neither input nor sibling, and put the path in its place."""
    folder.mkdir(parents=True, exist_ok=True)
    taken = {file.resolve() for file in files}
    for file, answer in zip(files, answers, strict=True):
        if "heatmap" in answer:
            names = (file.name + (f"-{n}" if n > 1 else "") + ".png" for n in range(1, len(files) * 2 + 2))
            path = next(folder / name for name in names if (folder / name).resolve() not in taken)
            taken.add(path.resolve())
            path.write_bytes(base64.b64decode(answer["heatmap"]["data"]))
            kept = {key: value for key, value in answer["heatmap"].items() if key != "data"}
            answer = {**answer, "heatmap": {**kept, "file": str(path)}}
        yield answer


def _print_lines(files: Iterable[Path], answers: Iterable[Answer]) -> int:
    failed = 0
    for file, answer in zip(files, answers, strict=True):
        failed += "error" in answer
        click.echo(json.dumps({"file": str(file), **answer}))
    return failed


def _print_table(files: Iterable[Path], answers: Iterable[Answer]) -> int:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    answers = list(answers)
    told = [name for name in ("probability", "severity") if any(name in answer for answer in answers)]
    whole_names = Column("file", overflow="fold")
    table = Table(whole_names, "score", "p-value", "cutoff", *told, "decision", box=None, pad_edge=False)
    failed, untold = 0, [""] * len(told)
    notes: dict[str, None] = {}
    for file, answer in zip(files, answers, strict=True):
        if fault := answer.get("error"):
            failed += 1
            table.add_row(escape(str(file)), "", "", "", *untold, f"[red]{fault['code']}[/] {escape(_sentence(fault))}")
            continue
        numbers = [f"{answer[key]:.4g}" for key in ("score", "p_value", "cutoff")]
        numbers += [f"{answer[key]:.4g}" if key in answer else "" for key in told]
        table.add_row(escape(str(file)), *numbers, "[bold]anomalous[/]" if answer["anomalous"] else "normal")
        for region in answer.get("regions", ()):
            figures = [f"{region[key]:.4g}" for key in ("score", "p_value")]
            decision = "[bold]anomalous[/]" if region["anomalous"] else "normal"
            table.add_row(f"  {escape(region['region'])}", *figures, "", *untold, decision)
        notes |= dict.fromkeys(answer.get("warnings", ()))
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 10_000  # a line a file for whatever reads it
    console.print(table)
    for note in notes:
        console.print(f"Warning: {escape(note)}")
    return failed


def _sentence(fault: dict[str, Any]) -> str:
    return f"{fault['message']}. {fault['hint']}" if fault.get("hint") else str(fault["message"])
