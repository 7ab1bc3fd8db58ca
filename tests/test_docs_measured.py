"""docs/serving-measured.md: made of its records, which say what a reader is told."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "tests" / "campaigns" / "measured.py"
MACHINE = {"cpu": "Some CPU", "cores": 3, "load": 1.25}
RECORDS = {
    "mutants": {
        "machine": MACHINE,
        "mutants": 7,
        "sent": 9,
        "codes": {"file ct": {"200": 2, "400": 4}, "mutation cut_short": {"400": 3}},
        "neighbours_moved": [],
        "largest_relative_difference": 0.0,
        "server_faults": ["500 ct"],
        "worker_pids": [11, 12],
        "decoder_processes_lost": {"hung": 1},
        "slowest_batch_s": 1.5,
        "seconds": 90,
    },
    "faults": {
        "machine": MACHINE,
        "clients": 4,
        "seconds": 2.0,
        "faults": {
            "worker killed": {
                "sent": 10, "answered": 9, "wrong": 0, "retried": 3, "lost": 1, "slowest_s": 2.5, "faults": ["x"],
            }
        },
        "not_tried": ["disk full"],
    },
    "load": {
        "machine": MACHINE,
        "load": [
            {"clients": n, "seconds": 5.01, "requests": 50 * n, "throughput": 10.0, "p50": 8.0, "p95": 9.0, "p99": 9.5,
             "errors": {"503: busy": n}}
            for n in (1, 4)
        ],
        "memory": {
            "before": {"frontend_mib": 400.0, "workers_mib": 800.0, "cpu_s": 1.0},
            "after": {"frontend_mib": 424.0, "workers_mib": 808.0, "cpu_s": 9.0},
        },
    },
    "overhead": {
        "machine": MACHINE,
        "overhead": {
            "clients": 16, "requests": 90, "noop_ms": 1.0, "decode_ms": 2.0, "infer_ms": 0.5, "handler_ms": 3.85,
            "parts_ms": 3.5, "ratio": 1.1, "seconds": 7.0, "rounds": 3, "batch": 8, "workers": 1,
        },
        "series": [
            {"path": "/somewhere", "slices": 30, "http": 300.0, "in_process": 400.0, "noop": 600.0, "ratio": 0.75,
             "http_cpu_ms": 4.0, "in_process_cpu_ms": 2.0}
        ],
    },
    "sweep": {
        "machine": MACHINE,
        "seconds": 2.5,
        "rounds": 2,
        "models": {
            "ae": [
                {"workers": 2, "batch_size": 8, "delay_ms": 20, "clients": 16, "per_second": 99.0, "p50_ms": 11.0,
                 "p95_ms": 22.0, "cpu_ms": 5.0}
            ]
        },
    },
    "privacy": {
        "machine": MACHINE,
        "marks": 6000,
        "requests": 1234,
        "files_read": 20,
        "files_with_marks": 0,
        "answers_with_marks": 2,
        "marks_printed_by_the_client": 0,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def measured() -> ModuleType:
    spec = importlib.util.spec_from_file_location("measured", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["measured"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_every_figure_of_a_record_is_told(measured: ModuleType) -> None:
    text = measured.page(RECORDS)
    told = rows(text)
    for row in (
        ["file ct", "6", "2", "4"],
        ["mutation cut_short", "3", "-", "3"],
        ["answers 5xx", "1"],
        ["workers lost", "1"],
        ["decoder processes lost and replaced", "1"],
        ["of them: hung", "1"],
        ["minutes", "1.50"],
        ["worker killed", "10", "9", "3", "0", "1", "2.50"],
        ["1", "50", "10.0", "8.00", "9.00", "9.50", "1"],
        ["4", "200", "10.0", "8.00", "9.00", "9.50", "4"],
        ["growth of TorchServe", "at most 0.05", "0.06", "no"],
        ["growth of workers", "at most 0.05", "0.01", "yes"],
        ["handler", "3.85"],
        ["handler / sum of the parts", "at most 1.15", "1.10", "yes"],
        ["over HTTP", "300", "100", "4.00"],
        ["no-op handler over HTTP, same bytes", "600", "50.0", "-"],
        ["speed of 30 slices over HTTP / in process", "at least 0.8", "0.75", "no"],
        ["ae", "2", "8", "20", "16", "99.0", "11.0", "22.0", "5.00"],
        ["requests", "1,234"],
        ["answers that repeat a mark of their request's content", "2"],
    ):
        assert row in told, row
    assert "--mutants 7 " in text
    assert "--clients 1,4 --seconds 5 " in text
    assert "--clients 16 --seconds 7 --rounds 3 " in text
    assert "--model ae --seconds 2.5 --rounds 2 " in text
    assert text.count("On Some CPU, 3 cores, on which 1.2 processes ran before it began.") == len(RECORDS)
    assert "mounted: disk full." in text


def test_the_page_is_made_of_its_records(measured: ModuleType) -> None:
    """Whoever edits it by hand is told here."""
    records = measured.records_in(ROOT / "docs" / "serving-measured")
    assert records.keys() == RECORDS.keys()
    assert (ROOT / "docs" / "serving-measured.md").read_text() == measured.page(records)


def test_records_are_taken_in_and_others_kept(
    measured: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("faults", "overhead", "privacy"):
        (tmp_path / f"{name}.json").write_text(json.dumps(RECORDS[name]))
        monkeypatch.setattr(
            sys, "argv", ["measured", f"--{name}", str(tmp_path / f"{name}.json"), "--docs", str(tmp_path / "docs")]
        )
        assert measured.main() == 0
    titles = re.findall(r"^## (.*)$", (tmp_path / "docs" / "serving-measured.md").read_text(), re.MULTILINE)
    assert titles == ["Faults under load", "What serving costs", "Traces of patients"]
    assert "somewhere" not in (tmp_path / "docs" / "serving-measured" / "overhead.json").read_text()


def test_a_damaged_record_writes_nothing(measured: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "load.json").write_text("{}")
    arguments = ["measured", "--load", str(tmp_path / "load.json"), "--docs", str(tmp_path / "docs")]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(KeyError):
        measured.main()
    assert not (tmp_path / "docs").exists()
