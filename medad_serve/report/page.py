"""One self-contained HTML file."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from medad_serve.files import write_whole


@dataclass(frozen=True)
class Shown:
    """One answer of a server: what was sent, what came back, and its overlay."""

    name: str
    truth: str
    answer: str
    score: float
    p_value: float
    correct: bool
    overlay: Path | None
    told: tuple[tuple[str, float], ...] = ()
    """What else the model says, by name: its probability, the severity."""


@dataclass(frozen=True)
class Listing:
    """One table."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Maps:
    """A table of images at their own size: a row an item, a column each thing that is shown of it."""

    title: str
    head: Sequence[str]
    rows: Sequence[tuple[str, Sequence[bytes]]]
    """Caption, and a JPEG for each column."""


_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem;color:#222}
h2{margin-top:2.2rem;border-bottom:1px solid #ddd;font-size:1.2rem}
table{border-collapse:collapse;margin:1rem 0;font-size:13px}
td,th{padding:.3rem .6rem;vertical-align:top;border-bottom:1px solid #ddd;text-align:left;
font-variant-numeric:tabular-nums}
img{max-width:100%}figure{display:inline-block;margin:.4rem;width:14rem}figcaption{font-size:13px}.wrong{color:#b00}
.maps{overflow-x:auto}.maps img{max-width:none;display:block}.maps td:first-child{white-space:pre-line}"""


def cell(figure: dict[str, float | None]) -> str:
    """Write a figure with its interval; a dash where the data do not determine it."""
    if figure["value"] is None:
        return "-"
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


def _image(path: Path, alt: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{data}">'


def _table(rows: Sequence[Sequence[str]], head: Sequence[str]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(c)}</{tag}>" for c in cells) + "</tr>"

    return "<table>" + line(head, "th") + "".join(line(r, "td") for r in rows) + "</table>"


def _maps(maps: Maps) -> str:
    lines = []
    for caption, images in maps.rows:
        shown = [f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(i).decode()}">' for i in images]
        cells = "".join(f"<td>{image}</td>" for image in shown)
        lines.append(f"<tr><td>{escape(caption)}</td>{cells}</tr>")
    head = "".join(f"<th>{escape(name)}</th>" for name in ("", *maps.head))
    table = f"<table><tr>{head}</tr>{''.join(lines)}</table>"
    return f'<h2>{escape(maps.title)}</h2><div class="maps">{table}</div>'


def _answers(shown: Sequence[Shown]) -> list[str]:
    parts = ["<h2>Answers over HTTP</h2>"]
    for row in shown:
        if row.overlay is None:
            continue
        text = f"{escape(row.truth)} &rarr; {escape(row.answer)}, score {row.score:.5f}, p = {row.p_value:.3f}"
        text += "".join(f", {escape(name)} {value:.2f}" for name, value in row.told)
        css = "" if row.correct else ' class="wrong"'
        parts.append(f"<figure>{_image(row.overlay, row.name)}<figcaption{css}>{text}</figcaption></figure>")
    return parts


def write_report(
    path: Path,
    *,
    title: str,
    facts: dict[str, str],
    plots: Sequence[tuple[str, Path]],
    shown: Sequence[Shown] = (),
    tables: Sequence[Listing] = (),
    maps: Sequence[Maps] = (),
) -> None:
    """Write one HTML file that needs no other: facts, tables, plots, maps, and the overlays of answers.

    Plots that follow each other under one title share its heading.
    """
    parts = [f"<h1>{escape(title)}</h1>", _table(list(facts.items()), ("measured", "value"))]
    parts += [f"<h2>{escape(t.title)}</h2>{_table(t.rows, t.head)}" for t in tables]
    last = None
    for name, file in plots:
        parts.append(("" if name == last else f"<h2>{escape(name)}</h2>") + _image(file, name))
        last = name
    parts += [_maps(each) for each in maps]
    if shown:
        parts += _answers(shown)
    body = "\n".join(parts)
    write_whole(
        path,
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style><body>{body}</body></html>\n",
    )
