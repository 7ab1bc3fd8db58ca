"""Any files, listed in a CSV: path and label, and where known patient, split, mask, severity and kind."""

from __future__ import annotations

from pathlib import Path

from pydantic import field_validator

from medad_serve.data.masks import check_mask
from medad_serve.data.rows import Row, only_once, read_sheet
from medad_serve.data.samples import Options, Role, Sample, Table, layout
from medad_serve.errors import MedadError
from medad_serve.spec import Frozen, validated

NORMAL = ("normal", "good", "healthy")
"""Class names that stand for healthy unless others are given; upper and lower case are one."""
TABLE = "table.csv"
_REQUIRED = ("path", "label")
_OPTIONAL = ("patient", "split", "mask", "severity", "kind")
_SPLITS: dict[str, Role] = {
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "calibration": "calibration",
    "test": "test",
}


class ClassOptions(Frozen):
    """Which classes are healthy."""

    normal: tuple[str, ...] = NORMAL

    @field_validator("normal", mode="before")
    @classmethod
    def _one_name_is_a_list_of_one(cls, names: object) -> object:
        return (names,) if isinstance(names, str) else names

    def is_normal(self, name: str) -> bool:
        """Whether a class counts as healthy, in whatever case it is written."""
        return name.casefold() in {n.casefold() for n in self.normal}


def _label(row: Row, options: ClassOptions) -> tuple[int, str]:
    """Return 0 or 1 and the class; numbers other than these are no class names."""
    text = row.need("label")
    if options.is_normal(text):
        return 0, ""
    if text in ("0", "1"):
        return int(text), ""
    try:
        float(text)
    except ValueError:
        return 1, text
    row.fail("label", "must be 0, 1 or the name of a class", "Write 0 for healthy and 1 for abnormal")


def _file(row: Row, column: str) -> Path:
    path = row.file.parent / row.need(column)
    try:
        found = path.is_file()
    except (OSError, ValueError):
        found = False
    return path if found else row.fail(column, "there is no such file", "Paths are relative to the CSV")


def _role(row: Row) -> Role | None:
    text = row.get("split")
    if not text:
        return None
    if text.lower() not in _SPLITS:
        row.fail("split", "is none of the splits", "Write train, validation, calibration or test, or leave it empty")
    return _SPLITS[text.lower()]


def _sample(row: Row, options: ClassOptions, has_patients: bool) -> Sample:
    path = _file(row, "path")
    mask = _file(row, "mask") if row.get("mask") else None
    if mask is not None:
        check_mask(path, mask)
    label, kind = _label(row, options)
    return Sample(
        path,
        row.need("patient") if has_patients else row.get("path"),
        label,
        kind=row.get("kind") or kind,
        role=_role(row),
        mask=mask,
        severity=row.number("severity"),
    )


def _check_roles(rows: tuple[Row, ...], samples: list[Sample]) -> None:
    """Refuse a patient in two splits, naming both lines."""
    first: dict[str, tuple[Role, int]] = {}
    for row, sample in zip(rows, samples, strict=True):
        if sample.role is None:
            continue
        role, line = first.setdefault(sample.patient, (sample.role, row.line))
        if role != sample.role:
            row.fail("split", f"the patient is in {role} on line {line}", "Give each patient one split")


@layout("csv", takes_file=True)
def read_csv_table(root: Path, options: Options) -> Table:
    """Read ``FILE.csv``, or ``DIR/table.csv``: columns path and label, and of patient, split, mask, severity, kind.

    Paths are relative to the CSV. ``label`` is 0, 1 or the name of a class; of these ``normal`` are healthy, and
    the others are kept as ``kind``. Without the column ``patient`` each file counts as a patient of its own.
    """
    checked = validated(ClassOptions, options, "options of layout csv")
    path = root / TABLE if root.is_dir() else root
    sheet = read_sheet(path, _REQUIRED)
    has_patients = "patient" in sheet.columns
    samples: list[Sample] = []
    seen: dict[str, int] = {}
    for row in sheet.rows:
        samples.append(_sample(row, checked, has_patients))
        only_once(row, "path", str(samples[-1].path.resolve()), seen)
    if not samples:
        raise MedadError(f"{path} lists no file", "Add one line a file")
    _check_roles(sheet.rows, samples)
    unused = [c for c in sheet.columns if c not in (*_REQUIRED, *_OPTIONAL)]
    notes = [f"columns of {path.name} not used: {', '.join(unused)}"] if unused else []
    if not has_patients:
        notes.append(f"{path.name} has no column patient: each file counts as a patient of its own")
    return Table(tuple(samples), tuple(notes))
