"""Latency by engine and throughput by batch size, drawn."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes

from medad_serve.bench.results import Benchmark
from medad_serve.report.figure import drawn

_REFERENCE, _OTHER = "tab:gray", "tab:blue"
_MARKERS = {"float32": "o", "float16": "^", "bfloat16": "s", "int8": "v", "int8-bfloat16": "D"}
_ROW = 0.22
"""Inches of the figure for each engine."""


def plot_benchmark(benchmark: Benchmark, path: Path) -> None:
    """Draw latency by engine at the smallest batch beside throughput at every batch, with the most threads."""
    threads = max(count for _, count in benchmark.settings)
    batches = [batch for batch, count in benchmark.settings if count == threads]
    with drawn(path, 9, 1 + _ROW * len(benchmark.measured)) as figure:
        latency, throughput = figure.subplots(1, 2)
        _draw_latency(latency, benchmark, min(batches), threads)
        _draw_throughput(throughput, benchmark, batches, threads)


def _draw_latency(axes: Axes, benchmark: Benchmark, batch: int, threads: int) -> None:
    timed = [(each.label, t) for each in benchmark.measured if (t := each.at(batch, threads))]
    timed.sort(key=lambda pair: -pair[1].p50_ms)
    names = [name for name, _ in timed]
    colors = [_REFERENCE if name == benchmark.reference else _OTHER for name in names]
    bars = axes.barh(names, [t.p50_ms for _, t in timed], color=colors)
    axes.bar_label(bars, [f"{t.p50_ms:.3g}" for _, t in timed], padding=2, fontsize=7)
    axes.set(title=f"{benchmark.name}: median of one call, batch {batch}, {threads} threads", xlabel="ms")
    axes.margins(x=0.12)


def _draw_throughput(axes: Axes, benchmark: Benchmark, batches: list[int], threads: int) -> None:
    engines = list(dict.fromkeys(each.engine for each in benchmark.measured))
    for each in benchmark.measured:
        timed = [(batch, t.items_per_s) for batch in batches if (t := each.at(batch, threads))]
        sizes, rates = [batch for batch, _ in timed], [rate for _, rate in timed]
        color, marker = f"C{engines.index(each.engine)}", _MARKERS.get(each.precision, "x")
        axes.plot(sizes, rates, marker=marker, color=color, label=each.label, markersize=4)
    axes.set(title="throughput", xlabel="batch", ylabel="items/s", xticks=batches, yscale="log")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=6)
