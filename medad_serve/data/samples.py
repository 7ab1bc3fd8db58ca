"""The sample table that every layout fills."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from medad_serve.errors import MedadError

Role = Literal["train", "validation", "calibration", "test"]


@dataclass(frozen=True)
class Sample:
    """One file of one patient; ``label`` is 1 for abnormal, 0 for healthy."""

    path: Path
    patient: str
    label: int
    kind: str = ""
    """Class within the label, e.g. ``CNV``; metrics are also reported by it."""
    role: Role | None = None
    """Where the data set itself says who trains and who tests: ``train`` is the pool that a run divides."""
    fold: int | None = None
    """Where the data set itself numbers its folds, from 1."""
    mask: Path | None = None
    """Image or volume whose non-zero pixels are abnormal."""
    severity: float | None = None


@dataclass(frozen=True)
class Table:
    """Samples in a stable order, and what the layout left out and why."""

    samples: tuple[Sample, ...]
    notes: tuple[str, ...] = ()

    def patients(self) -> dict[str, int]:
        """Return the label of every patient, in order of first appearance: abnormal where any scan is."""
        labels: dict[str, int] = {}
        for sample in self.samples:
            labels[sample.patient] = max(sample.label, labels.get(sample.patient, 0))
        return labels

    def given_roles(self) -> dict[str, Role]:
        """Return the role of every patient for whom the data set states one.

        Raises MedadError where one patient is given two.
        """
        roles: dict[str, Role] = {}
        for sample in self.samples:
            if sample.role is None:
                continue
            if roles.setdefault(sample.patient, sample.role) != sample.role:
                raise MedadError(
                    f"the patient of {sample.path} is in {roles[sample.patient]} and in {sample.role}",
                    "Give each patient one place",
                )
        return roles

    def given_folds(self) -> dict[str, int]:
        """Return the fold of every patient for whom the data set states one."""
        return {s.patient: s.fold for s in self.samples if s.fold is not None}

    def where(self, patients: set[str]) -> Table:
        """Return the samples of some patients."""
        return Table(tuple(s for s in self.samples if s.patient in patients), self.notes)


Options = dict[str, object]
Layout = Callable[[Path, Options], Table]


@dataclass
class _Registry:
    layouts: dict[str, Layout] = field(default_factory=dict)
    of_files: set[str] = field(default_factory=set)
    """Layouts that also take one file."""


_registry = _Registry()


def layout(name: str, *, takes_file: bool = False) -> Callable[[Layout], Layout]:
    """Register a reader of one way to lay out a data set: of a folder, and with ``takes_file`` also of a file."""

    def add(reader: Layout) -> Layout:
        if takes_file:
            _registry.of_files.add(name)
        _registry.layouts[name] = reader
        return reader

    return add


def read_table(source: str, options: Options | None = None) -> Table:
    """Read ``layout:directory``; raises MedadError for a folder that cannot be read or holds no healthy scan.

    A directory may be a URL, e.g. ``folders:s3://bucket/prefix``: its mirror in the cache is brought up to date first.
    """
    name, colon, directory = source.partition(":")
    if not colon or name not in _registry.layouts:
        known = ", ".join(f"{n}:DIR" for n in sorted(_registry.layouts))
        raise MedadError(f"{source!r} names no data layout", f"Write one of: {known}")
    root = _mirror(directory, name) if "://" in directory else Path(directory).expanduser()
    if not root.is_dir() and not (name in _registry.of_files and root.is_file()):
        raise MedadError(f"{root} is not a folder that can be read", f"Give the folder of the {name} data")
    try:
        table = _registry.layouts[name](root, options or {})
    except PermissionError:
        raise MedadError(f"{root} cannot be read: permission denied", "Check the rights of the folder") from None
    if not any(s.label == 0 for s in table.samples):
        notes = "; ".join(table.notes)
        raise MedadError(
            f"{root} holds no healthy scan" + (f" ({notes})" if notes else ""), "Check how its files are labelled"
        )
    return table


def _mirror(url: str, name: str) -> Path:
    from medad_serve.data.remote import mirrored  # which needs the cache, which needs samples

    return mirrored(url, takes_file=name in _registry.of_files)
