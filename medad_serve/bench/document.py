"""A report on engines as a page of Markdown: every word and figure of it is made here."""

from __future__ import annotations

import re
from collections.abc import Sequence

from medad_serve.bench.listing import cost, fastest, fidelity, skipped, speed
from medad_serve.bench.machine import Machine
from medad_serve.bench.results import Benchmark, Report
from medad_serve.bench.tables import Table

READING = """\
One call is timed from a batch in the host's memory to every output of the model there again. Engines that stand in
one table for the same batch and threads took turns of some calls each, so that what else the machine did weighs on
all alike: trust the ratios more than the milliseconds.

- **x {reference}** is how many times as fast as it in the median of turns: above 1 is faster.
- **p95, p99** are told from 20 and 100 calls on.
- **peak MiB** and **cold start** are of a fresh process that loads nothing but that engine: from its start to its
  first answer, then the largest batch. torch.compile compiles in it once more.
- **build s** is what is compiled in advance and then only loaded.
- **difference** is the largest of any float output from the reference's, relative to the item's largest magnitude (of
  z-scores to one deviation at least); **other codes** the share of VQ codes that are others; **flips** the items
  decided otherwise at the default cutoff, that of the variant's own calibration.
- onnxruntime, OpenVINO and TorchScript are opened as the server opens them where nothing was tuned.
- **onnxruntime spinning** keeps its threads awake for as long as a call lasts, as PyTorch's are by themselves: sooner
  done where no other process wants the cores, and up to twice as long where one does. `medad-serve tune` tries it.
- **AUROC** of a reduced precision stands beside that of the trained model in float32 on the same held-out items, by
  which its gate accepts it, and **test AUROC** on items that nothing was chosen by.
"""


def page(report: Report, *, command: str, plots: str = "", more: Sequence[Table] = ()) -> str:
    """Return the page; ``command`` made it, ``plots`` is where its plots lie from there, ``more`` follows it."""
    reference = report.benchmarks[0].reference
    parts = [
        "# Benchmarks\n",
        f"Made by `{command}`; no line of it is written by hand.\n",
        "## Machine\n",
        _machine(report.machine).markdown(),
        "## How to read it\n",
        READING.format(reference=reference),
        f"Each engine had about {report.seconds:g} s at each batch size and number of threads.\n",
    ]
    if len(report.benchmarks) > 1:
        table = fastest(report)
        parts += [f"## {table.title}\n", table.markdown()]
    parts += [_section(benchmark, plots) for benchmark in report.benchmarks]
    for table in more:
        parts += [f"## {table.title}\n", table.markdown()]
    return "\n".join(parts)


def plot_name(benchmark: Benchmark) -> str:
    """Return the file name of a benchmark's plot."""
    return re.sub(r"[^\w.-]+", "-", benchmark.name) + ".svg"


def _machine(machine: Machine) -> Table:
    rows = [
        ("processor", f"{machine.cpu}, {machine.cores} cores, {', '.join(machine.flags) or 'no vector flags known'}"),
        ("GPU", ", ".join(machine.gpus) or "none"),
        ("memory", f"{machine.memory_gib:g} GiB"),
        ("system", f"{machine.system}, governor {machine.governor}"),
        ("load when it began", f"{machine.load:g}"),
        ("versions", ", ".join(f"{name} {number}" for name, number in machine.versions.items())),
    ]
    return Table("machine", "Machine", ("of", "what"), tuple(rows))


def _section(benchmark: Benchmark, plots: str) -> str:
    parts = [
        f"## {benchmark.name}\n",
        f"`{benchmark.family}`, {benchmark.parameters:,} parameters, an item is "
        f"{' x '.join(map(str, benchmark.shape))}; asked about {benchmark.inputs} on {benchmark.device}.\n",
        f"![Latency and throughput of {benchmark.name}]({plots}{plot_name(benchmark)})\n",
        speed(benchmark).markdown(),
        cost(benchmark).markdown(),
    ]
    if benchmark.fidelity:
        of = benchmark.fidelity_of and f", {benchmark.fidelity_of}"
        parts += [f"Reduced precision, by its gate at export{of}:\n", fidelity(benchmark).markdown()]
    if benchmark.refused:
        parts += ["Left out when it was exported:\n", *(f"- {why}" for why in benchmark.refused), ""]
    if benchmark.skipped:
        parts += ["Not run:\n", skipped(benchmark).markdown()]
    return "\n".join(parts)
