"""What was measured of servers, drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes

from medad_serve.loadbench.closed_loop import Load
from medad_serve.loadbench.stages import STAGES, Breakdown
from medad_serve.report.figure import drawn

_COLORS = matplotlib.color_sequences["tab10"]


def plot_stages(breakdowns: Sequence[Breakdown], path: Path) -> None:
    """Draw a bar of stages for each way, the numbers of clients below each other."""
    numbers = dict.fromkeys(each.clients for each in breakdowns)
    groups = [[each for each in breakdowns if each.clients == number] for number in numbers]
    heights = [1 + len(group) for group in groups]
    with drawn(path, 6.4, 0.6 + 0.3 * sum(heights)) as figure:
        axes = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axis, group in zip(axes, groups, strict=True):
            _bars(axis, group)
        axes[-1].set_xlabel("milliseconds of a request, mean")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5)


def _bars(axis: Axes, group: Sequence[Breakdown]) -> None:
    places = range(len(group))
    reached = [0.0] * len(group)
    for stage, color in zip(STAGES, _COLORS, strict=False):
        widths = [each.stages.get(stage, 0.0) for each in group]
        axis.barh(places, widths, left=reached, color=color, label=stage, height=0.7)
        reached = [left + width for left, width in zip(reached, widths, strict=True)]
    for place, each in zip(places, group, strict=True):
        cost = "" if each.cpu_ms is None else f", {each.cpu_ms:.1f} ms of processor"
        axis.text(reached[place], place, f"  {each.throughput:.0f}/s{cost}", va="center")
    axis.set_yticks(places, [each.way for each in group])
    axis.invert_yaxis()
    axis.margins(x=0.35)
    axis.set_xlim(left=0)
    clients = group[0].clients
    axis.set_title(f"{clients} client{'s' * (clients > 1)}", loc="left")


def plot_loads(loads: Sequence[Load], path: Path) -> None:
    """Draw answers a second and latencies by number of clients."""
    clients = [load.clients for load in loads]
    with drawn(path, 6.4, 2.6) as figure:
        left, right = figure.subplots(1, 2)
        left.plot(clients, [load.throughput for load in loads], marker="o")
        left.set(ylabel="answers a second", ylim=(0, None))
        for name in ("p50", "p95", "p99"):
            right.plot(clients, [getattr(load, name) for load in loads], marker="o", label=name)
        right.set(ylabel="latency, ms", ylim=(0, None))
        right.legend()
        for axis in (left, right):
            axis.set(xlabel="clients", xscale="log")
            axis.set_xticks(clients, [str(number) for number in clients])
            axis.minorticks_off()
