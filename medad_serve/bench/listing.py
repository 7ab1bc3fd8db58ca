"""What was measured of engines, as tables."""

from __future__ import annotations

from medad_serve.bench.engines.served import Onnx, TorchScript
from medad_serve.bench.results import Benchmark, Measured, Report, Timed
from medad_serve.bench.tables import Cell, Table, shown
from medad_serve.spec import FLOAT32

ONNX, SCRIPT = Onnx.name, TorchScript.name


def speed(benchmark: Benchmark) -> Table:
    """Return latency and throughput: a row for each engine, precision, batch size and number of threads."""
    on_device = any(t.resident_p50_ms is not None for each in benchmark.measured for t in each.times)
    columns = ("engine", "batch", "threads", "p50 ms", "p95 ms", "p99 ms", "items/s", f"x {benchmark.reference}")
    rows: list[tuple[Cell, ...]] = []
    for batch, threads in benchmark.settings:
        for each in benchmark.measured:
            if (t := each.at(batch, threads)) is not None:
                row = (each.label, batch, threads, t.p50_ms, t.p95_ms, t.p99_ms, t.items_per_s, t.ratio)
                rows.append((*row, t.resident_p50_ms) if on_device else row)
    title = f"{benchmark.name}: an answer with every output"
    return Table("speed", title, (*columns, "p50 ms without copies") if on_device else columns, tuple(rows))


def cost(benchmark: Benchmark) -> Table:
    """Return what each engine takes to start and to hold, and how it agrees with the reference."""
    columns = (
        "engine",
        "disk MiB",
        "peak MiB",
        "of the GPU",
        "cold start s",
        "of it import",
        "load",
        "first answer",
        "build s",
        "difference",
        "other codes",
        "flips",
    )
    rows = tuple(_cost_row(each) for each in benchmark.measured)
    kept = [i for i in range(len(columns)) if any(row[i] is not None for row in rows)]
    return Table(
        "cost",
        f"{benchmark.name}: to start and to hold",
        tuple(columns[i] for i in kept),
        tuple(tuple(row[i] for i in kept) for row in rows),
    )


def _cost_row(each: Measured) -> tuple[Cell, ...]:
    cold, agreement = each.cold, each.agreement
    memory = (cold.peak_mib, cold.device_peak_mib) if cold else (None, None)
    start = (cold.total_s, cold.import_s, cold.load_s, cold.first_s) if cold else (None,) * 4
    return (
        each.label,
        each.disk_mib,
        *memory,
        *start,
        each.build_s,
        agreement.relative_difference,
        agreement.codes_differ,
        agreement.flips,
    )


def fidelity(benchmark: Benchmark) -> Table:
    """Return what each reduced precision keeps of the trained model: by its gate and, where it was tested, by that."""
    columns = ["variant", "AUROC", "trained, float32", "items", "decided alike", "correlation", "layers in float32"]
    tested = benchmark.tested
    exact = next((value for name, value in tested.items() if name.endswith(f"/{FLOAT32}")), None)
    columns += ["test AUROC", "in float32"] if tested else []
    rows = tuple(
        (
            each.variant,
            _auroc(each.auroc),
            _auroc(each.auroc_trained),
            each.items,
            f"{each.agreement:.1%}",
            f"{each.correlation:.4f}",
            f"{each.float_layers} of {each.layers}" if each.layers else None,
            *((_auroc(tested.get(each.variant)), _auroc(exact)) if tested else ()),
        )
        for each in benchmark.fidelity
    )
    return Table("fidelity", f"{benchmark.name}: reduced precision", tuple(columns), rows)


def _auroc(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"


def skipped(benchmark: Benchmark) -> Table:
    """Return the engines that did not run, and why."""
    rows = tuple((each.label, each.reason) for each in benchmark.skipped)
    return Table("skipped", f"{benchmark.name}: not run", ("engine", "why"), rows)


def everything(report: Report) -> Table:
    """Return one row for each engine, precision, batch size and number of threads of every model, with all figures."""
    columns = (
        "model",
        "family",
        "device",
        "engine",
        "precision",
        "batch",
        "threads",
        "calls",
        "p50_ms",
        "p95_ms",
        "p99_ms",
        "items_per_s",
        "ratio",
        "resident_p50_ms",
        "disk_mib",
        "peak_mib",
        "device_peak_mib",
        "import_s",
        "load_s",
        "first_s",
        "build_s",
        "relative_difference",
        "codes_differ",
        "flips",
        "items",
    )
    rows = tuple(
        row for benchmark in report.benchmarks for each in benchmark.measured for row in _full(benchmark, each)
    )
    return Table("engines", "Every figure", columns, rows)


def _full(benchmark: Benchmark, each: Measured) -> list[tuple[Cell, ...]]:
    cold, agreement = each.cold, each.agreement
    start = (cold.peak_mib, cold.device_peak_mib, cold.import_s, cold.load_s, cold.first_s) if cold else (None,) * 5
    return [
        (
            benchmark.name,
            benchmark.family,
            benchmark.device,
            each.engine,
            each.precision,
            *(t.batch, t.threads, t.calls, t.p50_ms, t.p95_ms, t.p99_ms, t.items_per_s, t.ratio, t.resident_p50_ms),
            each.disk_mib,
            *start,
            each.build_s,
            *(agreement.relative_difference, agreement.codes_differ, agreement.flips, agreement.items),
        )
        for t in each.times
    ]


def fastest(report: Report) -> Table:
    """Return for each model and batch size, with the most threads, the fastest engine in float32 and of all.

    Beside them how onnxruntime in float32 does against TorchScript, and the fastest against it.
    """
    columns = (
        "model",
        "input",
        "parameters",
        "batch",
        "reference ms",
        "fastest in float32",
        "fastest of all",
        f"{ONNX} x {SCRIPT}",
        f"fastest x {ONNX}",
    )
    rows: list[tuple[Cell, ...]] = []
    for benchmark in report.benchmarks:
        shape, most = "x".join(map(str, benchmark.shape[1:])), max(threads for _, threads in benchmark.settings)
        for batch in [batch for batch, threads in benchmark.settings if threads == most]:
            timed = [(each, t) for each in benchmark.measured if (t := each.at(batch, most))]
            exact = [(each, t) for each, t in timed if each.precision == "float32"]
            model = (benchmark.name, shape, benchmark.parameters, batch, timed[0][1].p50_ms)
            ratio = {each.label: t.ratio for each, t in timed}
            most_of_all = max(ratio.values())
            beside = (_over(ratio.get(ONNX), ratio.get(SCRIPT)), _over(most_of_all, ratio.get(ONNX)))
            rows.append((*model, _best(exact) if exact else None, _best(timed), *beside))
    return Table("fastest", "Fastest engine of each model", columns, tuple(rows))


def _over(one: float | None, other: float | None) -> float | None:
    return one / other if one is not None and other else None


def _best(timed: list[tuple[Measured, Timed]]) -> str:
    each, t = max(timed, key=lambda pair: pair[1].ratio)
    return f"{each.label}, {shown(t.ratio)} x"
