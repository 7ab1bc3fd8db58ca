"""A report on engines as files: JSON, CSV, Markdown and plots, whole or not at all."""

from __future__ import annotations

from pathlib import Path

from medad_serve.bench.document import page, plot_name
from medad_serve.bench.listing import everything
from medad_serve.bench.plots import plot_benchmark
from medad_serve.bench.results import Report
from medad_serve.errors import MedadError
from medad_serve.files import whole_directory, write_whole

RECORD, CSV, PAGE = "report.json", "engines.csv", "report.md"


def write_report(report: Report, out: Path) -> None:
    """Write the folder ``out``; one that is there is replaced only where it was written by this too."""
    refuse_other(out)
    with whole_directory(out) as folder:
        write_files(report, folder)
        write_whole(folder / PAGE, page(report, command="medad-serve bench"))


def write_files(report: Report, folder: Path) -> None:
    """Write the record, the figures and the plots into a folder."""
    write_whole(folder / RECORD, report.model_dump_json(indent=1) + "\n")
    write_whole(folder / CSV, everything(report).csv())
    for benchmark in report.benchmarks:
        plot_benchmark(benchmark, folder / plot_name(benchmark))


def refuse_other(out: Path) -> None:
    """Raise MedadError where a folder holds anything but a report."""
    if out.exists() and not (out / RECORD).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise MedadError(f"{out} holds something else", "Give --out a folder that is new or empty")
