"""Write docs/serving-measured.md from what the campaigns and the load on a server left behind.

    python tests/campaigns/measured.py --mutants mutants.json --faults faults.json --load load.json --overhead o.json

Each record is kept beside the page, in docs/serving-measured/; those not named stay as they are there. Targets stand
beside what was measured, met or not.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from medad_serve.bench.tables import Cell, Table
from medad_serve.files import write_whole

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE, RECORDS = "serving-measured.md", "serving-measured"
HEAD = """# Serving, measured

Written by `python tests/campaigns/measured.py` from the records in [serving-measured/](serving-measured/), not by hand.
How to serve: [serving.md](serving.md).
"""
COMMANDS = {
    "mutants": "python tests/campaigns/mutants.py --mutants {mutants} --json mutants.json",
    "faults": "python tests/campaigns/faults.py STORE FILES... --model NAME --clients {clients} --seconds {seconds:g} "
    "--json faults.json",
    "load": "medad-serve bench FILES... --http URL --model NAME --clients {clients} --seconds {seconds:.0f} --json "
    "> load.json",
    "overhead": "medad-serve bench --overhead ARTIFACT FILES... SERIES_FOLDER/ --clients {clients} "
    "--seconds {seconds:g} --rounds {rounds} --json > overhead.json",
    "sweep": "python tests/campaigns/sweep.py FOLDER {models} --seconds {seconds:g} --rounds {rounds} "
    "--json sweep.json",
    "privacy": "python tests/campaigns/privacy.py --json privacy.json",
}
HANDLER_AT_MOST, SERIES_AT_LEAST, GROWTH_AT_MOST = 1.15, 0.8, 0.05
"""The handler beside the sum of its parts; a series over HTTP beside in process; memory from start to end of a load."""
Record = dict[str, Any]


def page(records: dict[str, Record]) -> str:
    """Return the page of the records that there are, by name."""
    writers = {
        "mutants": mutants,
        "faults": faults,
        "load": load,
        "overhead": overhead,
        "sweep": sweep,
        "privacy": privacy,
    }
    return "\n".join([HEAD, *(write(records[name]) for name, write in writers.items() if name in records)])


def mutants(record: Record) -> str:
    """Tell how damaged files were answered, beside good ones in the same batch."""
    codes = sorted({int(code) for counts in record["codes"].values() for code in counts})
    rows = []
    for row, counts in record["codes"].items():
        answers = [counts.get(str(code)) for code in codes]
        rows.append((row, sum(counts.values()), *answers))
    facts: list[tuple[str, Cell]] = [
        ("files sent, those damaged among them", record["sent"]),
        ("answers 5xx", len(record["server_faults"])),
        ("good neighbours whose answer moved by more than 1e-6", len(record["neighbours_moved"])),
        ("largest relative difference of a neighbour's answer", record["largest_relative_difference"]),
        ("workers lost", len(record["worker_pids"]) - 1),
        ("decoder processes lost and replaced", sum(record["decoder_processes_lost"].values())),
        *((f"of them: {how}", count) for how, count in sorted(record["decoder_processes_lost"].items())),
        ("slowest batch, seconds", record["slowest_batch_s"]),
        ("minutes", record["seconds"] / 60),
    ]
    text = "Test files of pydicom and nibabel as they are, then mutations of them and of every other form that is read."
    return _section(
        "mutants",
        "Damaged files",
        text,
        record,
        [_facts(facts), Table("codes", "", ("what", "sent", *map(str, codes)), tuple(rows))],
    )


def faults(record: Record) -> str:
    """Tell what clients met while something was done to their server."""
    columns = ("fault", "sent", "answered", "retried", "wrong", "lost", "slowest s")
    keys = ("sent", "answered", "retried", "wrong", "lost", "slowest_s")
    rows = tuple((name, *(tally[key] for key in keys)) for name, tally in record["faults"].items())
    text = f"{record['clients']} clients that ask without pause and send again what was not answered."
    if record["not_tried"]:
        text += f" Not tried, for want of a disk that may be mounted: {', '.join(record['not_tried'])}."
    return _section("faults", "Faults under load", text, record, [Table("faults", "", columns, rows)])


def load(record: Record) -> str:
    """Tell what one number of clients after another met."""
    columns = ("clients", "requests", "a second", "p50 ms", "p95 ms", "p99 ms", "errors")
    keys = ("clients", "requests", "throughput", "p50", "p95", "p99")
    rows = tuple((*(each[key] for key in keys), sum(each["errors"].values())) for each in record["load"])
    tables = [Table("load", "", columns, rows)]
    if memory := record.get("memory"):
        tables += _memory(memory["before"], memory["after"])
    asked = {
        "clients": ",".join(str(each["clients"]) for each in record["load"]),
        "seconds": min(each["seconds"] for each in record["load"]),
    }
    text = "Each client sends its next request once the last is answered; the generator shares the cores."
    return _section("load", "Load", text, record | asked, tables)


def _memory(before: dict[str, float], after: dict[str, float]) -> Iterator[Table]:
    """Tell how much the processes grew between the end of the warm-up and that of the load."""
    parts = (("TorchServe", "frontend_mib"), ("workers", "workers_mib"))
    sizes = tuple((name, before[key], after[key]) for name, key in parts)
    yield Table("memory", "", ("resident memory, MiB", "before", "after"), sizes)
    grown = [(f"growth of {name}", after[key] / before[key] - 1) for name, key in parts]
    yield _targets((what, f"at most {GROWTH_AT_MOST}", value, value <= GROWTH_AT_MOST) for what, value in grown)


def overhead(record: Record) -> str:
    """Tell what serving costs beside its parts: one file, then whole series."""
    cost = record["overhead"]
    parts: list[tuple[str, Cell]] = [
        ("no-op handler, same bytes and configuration", cost["noop_ms"]),
        ("decode and prepare in process", cost["decode_ms"]),
        ("batched inference in process", cost["infer_ms"]),
        ("sum of the parts", cost["parts_ms"]),
        ("handler", cost["handler_ms"]),
    ]
    ratio = cost["ratio"]
    told = [("handler / sum of the parts", f"at most {HANDLER_AT_MOST}", ratio, ratio <= HANDLER_AT_MOST)]
    tables = [Table("overhead", "", ("processor time", "ms a request"), tuple(parts))]
    for series in record.get("series", ()):
        tables.append(_series(series))
        ratio = series["ratio"]
        what = f"speed of {series['slices']} slices over HTTP / in process"
        told.append((what, f"at least {SERIES_AT_LEAST}", ratio, ratio >= SERIES_AT_LEAST))
    text = (
        "All measured in turn in one run. What the no-op handler takes over a series is the transport of its bytes. "
        "Other work on the cores moves speeds, and by more than processor time."
    )
    return _section("overhead", "What serving costs", text, record | cost, [*tables, _targets(told)])


def _series(series: Record) -> Table:
    count = series["slices"]
    ways = (("in process", "in_process"), ("over HTTP", "http"), ("no-op handler over HTTP, same bytes", "noop"))
    rows = tuple((name, series[key], count / series[key] * 1e3, series.get(f"{key}_cpu_ms")) for name, key in ways)
    return Table("series", "", (f"{count} slices as one request", "slices a second", "ms", "CPU ms a slice"), rows)


def sweep(record: Record) -> str:
    """Tell what workers, batch size and delay change, for each model."""
    keys = ("workers", "batch_size", "delay_ms", "clients", "per_second", "p50_ms", "p95_ms", "cpu_ms")
    columns = ("workers", "batch size", "delay ms", "clients", "answers a second", "p50 ms", "p95 ms", "CPU ms")
    tables = [
        Table(model, "", ("model", *columns), tuple((model, *(row[key] for key in keys)) for row in rows))
        for model, rows in record["models"].items()
    ]
    asked = {"models": " ".join(f"--model {model}" for model in record["models"])}
    text = (
        "All settings are served at once and loaded in turn. The defaults of `archive` are 1 worker, batches of up to "
        "8 and a delay of 1 ms; a second worker takes as much memory again."
    )
    return _section("sweep", "Workers, batches and delay", text, record | asked, tables)


def privacy(record: Record) -> str:
    """Tell where marks of requests were found again."""
    facts = [
        ("marks in the files sent", record["marks"]),
        ("requests", record["requests"]),
        ("files searched: logs, settings and temporary ones", record["files_read"]),
        ("files with a mark", record["files_with_marks"]),
        ("answers that repeat a mark of their request's content", record["answers_with_marks"]),
        ("marks printed by the client", record["marks_printed_by_the_client"]),
    ]
    text = "Every element, header, name, path and body of a request holds a string that occurs nowhere else."
    return _section("privacy", "Traces of patients", text, record, [_facts(facts)])


def _facts(facts: Iterable[tuple[str, Cell]]) -> Table:
    return Table("facts", "", ("measured", "figure"), tuple(facts))


def _targets(rows: Iterable[tuple[str, str, float, bool]]) -> Table:
    return Table("targets", "", ("measured", "target", "figure", "met"), tuple(rows))


def _section(name: str, title: str, text: str, record: Record, tables: list[Table]) -> str:
    machine = record["machine"]
    where = (
        f" On {machine['cpu']}, {machine['cores']} cores, on which {machine['load']:.1f} processes ran before it began."
    )
    command = f"```console\n{COMMANDS[name].format(**record)}\n```\n"
    return "\n".join([f"## {title}\n\n{text}{where}\n\n{command}", *(table.markdown() for table in tables)])


def records_in(folder: Path) -> dict[str, Record]:
    """Return the records that are kept in a folder, by name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def without_paths(record: Record) -> Record:
    """Return a record without where its series lay, which is nobody else's business."""
    series = [{key: value for key, value in each.items() if key != "path"} for each in record.get("series", ())]
    return {**record, "series": series} if series else record


def main() -> int:
    """Take in the records that are named, and write the page anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in COMMANDS:
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--docs", type=Path, default=DOCS)
    asked = vars(parser.parse_args())
    docs = asked.pop("docs")
    for name, path in asked.items():
        if path is not None:
            record = without_paths(json.loads(path.read_text()))
            page({name: record})  # before anything is written
            write_whole(docs / RECORDS / f"{name}.json", json.dumps(record, indent=1) + "\n")
    write_whole(docs / PAGE, page(records_in(docs / RECORDS)))
    print(docs / PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
