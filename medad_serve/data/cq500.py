"""CQ500 head CT (Chilamkurthy et al., Lancet 2018): a DICOM tree and the reads of three radiologists."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from pydantic import field_validator

from medad_serve.data.samples import Options, Sample, Table, layout
from medad_serve.errors import MedadError
from medad_serve.spec import Frozen, validated

_CONTRAST = "contrast|post|angio|cta|4cc|iodine"
_PLAIN_FIRST = (
    rf"^(?=.*plain)(?!.*(thin|bone|{_CONTRAST}))",
    rf"^(?=.*plain)(?!.*(bone|{_CONTRAST}))",
    rf"^(?!.*(bone|scout|localizer|topogram|{_CONTRAST}))",
)
_PATIENT = re.compile(r"CQ500[-_ ]?CT[-_ ]?(\d+)", re.IGNORECASE)
_READER_COLUMN = re.compile(r"R\d+:(.+)")


class Cq500Options(Frozen):
    """How the tree is read."""

    series: tuple[str, ...] = _PLAIN_FIRST
    """Regular expressions on the series folder, best first: the first that fits any series of a patient
    chooses it (ties: the shortest name, then the alphabet). A patient with no fit is left out."""
    abnormal: str = "ICH"
    """The finding that makes a patient abnormal."""
    others: bool = False
    """Count patients with other findings as abnormal too, instead of leaving them out."""

    @field_validator("series")
    @classmethod
    def _patterns_compile(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression ({error})") from None
        return patterns


def _patient_key(name: str) -> str | None:
    found = _PATIENT.search(name)
    return f"CQ500CT{int(found.group(1))}" if found else None


def majority(votes: Iterable[str]) -> bool:
    """Whether more than half of the readers voted 1; an empty vote counts as 0."""
    cast = [v.strip() in ("1", "1.0") for v in votes]
    return sum(cast) * 2 > len(cast)


def read_findings(path: Path) -> tuple[dict[str, set[str]], tuple[str, ...]]:
    """Return the findings that a majority of readers saw, by patient, and all that were read for."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise MedadError(
            f"{path} cannot be read ({type(error).__name__})", "Put CQ500's reads.csv into the data folder"
        ) from None
    columns: dict[str, list[str]] = {}
    for column in rows[0] if rows else {}:
        if isinstance(column, str) and (found := _READER_COLUMN.fullmatch(column.strip())):
            columns.setdefault(found.group(1), []).append(column)
    if not columns:
        raise MedadError(f"{path} has no reader columns", "It needs columns such as R1:ICH, R2:ICH, R3:ICH")
    findings: dict[str, set[str]] = {}
    for row in rows:
        key = _patient_key(row.get("name") or "")
        if key:
            findings[key] = {f for f, names in columns.items() if majority(row[n] or "" for n in names)}
    return findings, tuple(columns)


def choose_series(folders: Iterable[Path], patterns: Iterable[str]) -> Path | None:
    """Return the series folder that the first fitting pattern names."""
    ordered = sorted(folders, key=lambda f: (len(f.name), f.name, str(f)))
    for pattern in patterns:
        for folder in ordered:
            if re.search(pattern, folder.name, re.IGNORECASE):
                return folder
    return None


def _label(findings: set[str], options: Cq500Options) -> int | None:
    if not findings:
        return 0
    return 1 if options.others or options.abnormal in findings else None


def _series_folders(patient: Path) -> list[Path]:
    return sorted({f.parent for f in patient.rglob("*") if f.is_file() and not f.name.startswith(".")})


@layout("cq500")
def read_cq500(root: Path, options: Options) -> Table:
    """Read ``ROOT/CQ500CT<n> .../<study>/<series>/*`` and ``ROOT/reads.csv``.

    Healthy is a patient without any finding in any column present; abnormal one with ICH; others are left out
    unless asked for. One series a patient.
    """
    checked = validated(Cq500Options, options, "options of layout cq500")
    findings, columns = read_findings(root / "reads.csv")
    if checked.abnormal not in columns:
        raise MedadError(f"{root / 'reads.csv'} has no reads of {checked.abnormal}", f"It has: {', '.join(columns)}")
    samples: list[Sample] = []
    left_out: Counter[str] = Counter()
    seen: set[str] = set()
    for folder in sorted(p for p in root.iterdir() if p.is_dir()):
        key = _patient_key(folder.name)
        if key is None or key in seen:
            left_out["folders without a patient number of their own"] += 1
            continue
        seen.add(key)
        label = _label(findings[key], checked) if key in findings else None
        series = choose_series(_series_folders(folder), checked.series)
        if label is None:
            left_out["patients without reads" if key not in findings else "patients with other findings only"] += 1
        elif series is None:
            left_out["patients without a fitting series"] += 1
        else:
            samples += [Sample(f, key, label) for f in sorted(series.iterdir()) if f.is_file() and f.name[0] != "."]
    notes = tuple(f"{count} {what} left out" for what, count in sorted(left_out.items()))
    return Table(tuple(samples), notes)
