"""How every figure looks and is written."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from medad_serve.files import write_whole

matplotlib.use("Agg")

DPI = 150
NORMAL, ABNORMAL = "tab:blue", "tab:red"
_STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.framealpha": 0.8,
    "legend.edgecolor": "none",
    "legend.fontsize": 7,
    "lines.linewidth": 1.2,
    "svg.fonttype": "none",
    "svg.hashsalt": "medad-serve",
}


@contextmanager
def drawn(path: Path, width: float, height: float) -> Iterator[Figure]:
    """Yield a figure of the house's style, inches wide and high, that is written at the end: as PNG, or SVG by name."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        buffer = io.BytesIO()
        kind = path.suffix.removeprefix(".")
        # a date would make every drawing of the same figures another file
        figure.savefig(buffer, format=kind, dpi=DPI, metadata={"Date": None} if kind == "svg" else None)
    write_whole(path, buffer.getvalue())
