"""Write docs/serving-measured.md from what the campaigns and the load on a server left behind.

    python tests/campaigns/measured.py --mutants mutants.json --faults faults.json --load load.json --privacy x.json

Each record is kept beside the page, in docs/serving-measured/; those not named stay as they are there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
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
    "privacy": "python tests/campaigns/privacy.py --json privacy.json",
}
Record = dict[str, Any]


def page(records: dict[str, Record]) -> str:
    """Return the page of the records that there are, by name."""
    writers = {"mutants": mutants, "faults": faults, "load": load, "privacy": privacy}
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
        *((f"decoder processes that {how}", count) for how, count in record["decoder_processes_lost"].items()),
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
    return _section("faults", "Faults under load", text, record, [Table("faults", "", columns, rows)])


def load(record: Record) -> str:
    """Tell what one number of clients after another met."""
    columns = ("clients", "requests", "a second", "p50 ms", "p95 ms", "p99 ms", "errors")
    keys = ("clients", "requests", "throughput", "p50", "p95", "p99")
    rows = tuple((*(each[key] for key in keys), sum(each["errors"].values())) for each in record["load"])
    tables = [Table("load", "", columns, rows)]
    if memory := record.get("memory"):
        parts = (("TorchServe", "frontend_mib"), ("workers", "workers_mib"))
        grown = tuple((name, memory["before"][key], memory["after"][key]) for name, key in parts)
        tables.append(Table("memory", "", ("resident memory, MiB", "before", "after"), grown))
    asked = {
        "clients": ",".join(str(each["clients"]) for each in record["load"]),
        "seconds": min(each["seconds"] for each in record["load"]),
    }
    text = "Each client sends its next request once the last is answered; the generator shares the cores."
    return _section("load", "Load", text, record | asked, tables)


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


def _section(name: str, title: str, text: str, record: Record, tables: list[Table]) -> str:
    machine = record.get("machine")
    where = f" On {machine['cpu']}, {machine['cores']} cores." if machine else ""
    command = f"```console\n{COMMANDS[name].format(**record)}\n```\n"
    return "\n".join([f"## {title}\n\n{text}{where}\n\n{command}", *(table.markdown() for table in tables)])


def records_in(folder: Path) -> dict[str, Record]:
    """Return the records that are kept in a folder, by name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


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
            text = path.read_text()
            page({name: json.loads(text)})  # before anything is written
            write_whole(docs / RECORDS / f"{name}.json", text)
    write_whole(docs / PAGE, page(records_in(docs / RECORDS)))
    print(docs / PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
