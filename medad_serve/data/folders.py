"""Class folders: ``ROOT/<CLASS>/*``, or ``ROOT/train|val|test/<CLASS>/*`` as Kermany's OCT2017 and chest X-rays."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from pydantic import field_validator

from medad_serve.data.csv_table import ClassOptions
from medad_serve.data.samples import Options, Role, Sample, Table, layout
from medad_serve.errors import MedadError
from medad_serve.spec import validated

_ROLES: dict[str, Role] = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
_STRICTEST: tuple[Role, ...] = ("test", "validation", "train")
"""Of the places that a patient has, the first is kept."""
_IMAGES = (".png", ".jpg", ".jpeg", ".dcm", ".dicom", ".npy", ".nii", ".nii.gz", ".zip")
_DICOM = (128, b"DICM")
_OCT = re.compile(r"(?:CNV|DME|DRUSEN|NORMAL)-(\d+)-\d+")
_CHEST = (
    re.compile(r"(person\d+)_"),
    # NORMAL2-IM-0384 and IM-0384 may be one person: taken for one, so that nobody is in two splits.
    re.compile(r"(?:NORMAL2-)?(IM-\d+)-"),
)


class FoldersOptions(ClassOptions):
    """How the folders are read."""

    patient: str | None = None
    """Regular expression whose group (``patient``, or the first) is the patient: searched in the file's name
    without its ending, then in its path below the data folder. None knows the names of Kermany's sets, and
    otherwise takes what stands before the last underscore."""
    classes: tuple[str, ...] = ()
    """Read these alone; empty reads all."""

    @field_validator("classes", mode="before")
    @classmethod
    def _one_class_is_a_list_of_one(cls, names: object) -> object:
        return (names,) if isinstance(names, str) else names

    @field_validator("patient")
    @classmethod
    def _pattern_has_a_group(cls, pattern: str | None) -> str | None:
        try:
            groups = 1 if pattern is None else re.compile(pattern).groups
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression ({error})") from None
        if not groups:
            raise ValueError(f"{pattern!r} has no group for the patient, e.g. ([^_]+)_")
        return pattern


class _Named(NamedTuple):
    patient: str
    rule: str
    """What the name was read by, where a reader should know."""


ITSELF = "itself"
UNDERSCORE = "underscore"


def _ending(path: Path) -> str:
    return ".nii.gz" if path.name.lower().endswith(".nii.gz") else path.suffix


def stem_of(path: Path) -> str:
    """Return the name without its ending; digits after a point are part of a UID."""
    ending = _ending(path)
    return path.name if _is_bare(path) else path.name[: len(path.name) - len(ending)]


def _is_bare(path: Path) -> bool:
    return path.suffix == "" or path.suffix[1:].isdigit()


def is_image(path: Path) -> bool:
    """Whether a file has the ending of an image, or none and the mark of DICOM."""
    if _ending(path).lower() in _IMAGES:
        return True
    if not _is_bare(path):
        return False
    offset, mark = _DICOM
    with path.open("rb") as file:
        return file.read(offset + len(mark))[offset:] == mark


def patient_of(path: Path, below: str, pattern: str | None) -> _Named:
    """Return the patient of a file; ``below`` is its path below the data folder.

    Raises MedadError where a given pattern does not fit.
    """
    stem = stem_of(path)
    if pattern is not None:
        found = re.search(pattern, stem) or re.search(pattern, below)
        group = "patient" if "patient" in re.compile(pattern).groupindex else 1
        if found is None or not found.group(group):
            raise MedadError(f"{path} does not fit the pattern {pattern}", "Correct data_options.patient")
        return _Named(found.group(group), "")
    if found := _OCT.fullmatch(stem):
        return _Named(found.group(1), "")
    for known in _CHEST:
        if found := known.match(stem):
            return _Named(found.group(1), "")
    subject, underscore, scan = stem.rpartition("_")
    if underscore and subject and scan:
        return _Named(subject, UNDERSCORE)
    return _Named(below, ITSELF)


def is_hidden(below: Path) -> bool:
    """Whether a file, by its path below a class folder, or a folder above it is hidden."""
    return any(part.startswith(".") for part in below.parts)


def subfolders(folder: Path) -> list[Path]:
    """Return the folders directly below one, without hidden ones, in the order of their names."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and p.name[0] not in "._")


def _class_folders(root: Path, options: FoldersOptions) -> Iterator[tuple[Role | None, Path]]:
    """Yield class folders with the role of the folder above them, where that names one."""
    folders = subfolders(root)
    places = [(_ROLES[f.name.lower()], f) for f in folders if f.name.lower() in _ROLES]
    found: list[tuple[Role | None, Path]] = [(None, f) for f in folders]
    if places:
        found = [(role, folder) for role, place in places for folder in subfolders(place)]
    names = sorted({f.name for _, f in found})
    if not names:
        raise MedadError(f"{root} holds no class folders", "Put the images into one folder a class")
    if unknown := [c for c in options.classes if c not in names]:
        raise MedadError(f"{root} has no class folder {unknown[0]}", f"It has: {', '.join(names)}")
    read = [name for name in names if not options.classes or name in options.classes]
    if not any(options.is_normal(name) for name in read):
        raise MedadError(
            f"none of the class folders of {root} is known as healthy: {', '.join(read)}",
            f"Name it, e.g. data_options.normal=[{read[0]}]",
        )
    return ((role, folder) for role, folder in found if folder.name in read)


def without_repeats(samples: list[Sample]) -> tuple[list[Sample], list[str]]:
    """Keep the images of each patient in one place alone."""
    places: dict[str, set[Role]] = {}
    for sample in samples:
        if sample.role:
            places.setdefault(sample.patient, set()).add(sample.role)
    place = {patient: min(roles, key=_STRICTEST.index) for patient, roles in places.items()}
    kept = [s for s in samples if s.role is None or s.role == place[s.patient]]
    left: Counter[tuple[Role, Role]] = Counter()
    first: dict[tuple[Role, Role], str] = {}
    for sample in samples:
        if sample.role and sample.role != place[sample.patient]:
            pair = (sample.role, place[sample.patient])
            left[pair] += 1
            first.setdefault(pair, sample.path.name)
    return kept, [
        f"{count} images of {role} left out, e.g. {first[role, other]}: their patients are in {other} too"
        for (role, other), count in sorted(left.items())
    ]


def _by_name(rules: Counter[str]) -> list[str]:
    """Say where patients were guessed."""
    notes = []
    if rules[UNDERSCORE]:
        notes.append(f"the patient of {rules[UNDERSCORE]} images is what stands before the last underscore of the name")
    if rules[ITSELF]:
        notes.append(f"{rules[ITSELF]} images name no patient: each counts as a patient of its own")
    return [f"{note} (data_options.patient tells it by a pattern)" for note in notes]


@layout("folders")
def read_folders(root: Path, options: Options) -> Table:
    """Read class folders; files in folders below them count too.

    A class that ``normal`` names is healthy and has no ``kind``; the others are abnormal and of the kind that
    the folder is called. Files below ``test`` and ``val`` have that role. A patient who is also in ``train``
    keeps the images of ``test`` (else ``val``) alone. Raises MedadError for an empty class folder.
    """
    checked = validated(FoldersOptions, options, "options of layout folders")
    samples: list[Sample] = []
    rules: Counter[str] = Counter()
    ignored = 0
    for role, folder in _class_folders(root, checked):
        files = [p for p in sorted(folder.rglob("*")) if p.is_file() and not is_hidden(p.relative_to(folder))]
        images = [p for p in files if is_image(p)]
        if not images:
            raise MedadError(
                f"class folder {folder} holds no image", "Fill it, or leave it out by data_options.classes"
            )
        ignored += len(files) - len(images)
        normal = checked.is_normal(folder.name)
        sample = Sample(folder, "", 0 if normal else 1, kind="" if normal else folder.name, role=role)
        for path in images:
            named = patient_of(path, path.relative_to(root).as_posix(), checked.patient)
            rules[named.rule] += 1
            samples.append(replace(sample, path=path, patient=named.patient))
    kept, notes = without_repeats(samples)
    if ignored:
        notes.append(f"{ignored} files that are no images left out")
    return Table(tuple(kept), (*notes, *_by_name(rules)))
