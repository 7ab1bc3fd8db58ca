"""Volumes cut beforehand, one structure each: ``vol_{patient}_{level}.npy|.nii|.nii.gz`` with lists beside them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from medad_serve.data.rows import Row, only_once, read_sheet
from medad_serve.data.samples import Options, Role, Sample, Table, layout
from medad_serve.errors import MedadError
from medad_serve.spec import Frozen, validated

_NAME = re.compile(r"(vol_(?P<patient>.+)_[^_]+)(?P<ending>\.npy|\.nii|\.nii\.gz)")
LABELS, FOLDS, TEST, MASKS = "labels.csv", "folds.csv", "test.txt", "masks"


class VolumesOptions(Frozen):
    """The layout has no options."""


@dataclass(frozen=True)
class _Volume:
    path: Path
    stem: str
    patient: str


def _npy_shape(path: Path) -> tuple[int, ...]:
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    if not np.issubdtype(dtype, np.number) or np.issubdtype(dtype, np.complexfloating):
        raise MedadError(f"{path} holds {dtype}, not real numbers", "Save it as float32")
    return tuple(shape)


def _nifti_shape(path: Path) -> tuple[int, ...]:
    import nibabel

    image = nibabel.load(path)
    return image.shape if isinstance(image, nibabel.spatialimages.SpatialImage) else ()


def volume_shape(path: Path) -> tuple[int, ...]:
    """Return the three sizes of a volume from its header alone, in the order of the file.

    Raises MedadError where the header cannot be read or does not tell a volume.
    """
    try:
        shape = _npy_shape(path) if path.suffix == ".npy" else _nifti_shape(path)
    except MedadError:
        raise
    except Exception as error:  # nibabel and numpy raise many kinds on damaged headers
        raise MedadError(f"{path} is no readable volume ({type(error).__name__})", "Write it again") from None
    if len(shape) != 3 or min(shape) < 1:
        raise MedadError(f"{path} is {'x'.join(map(str, shape)) or 'one value'}, not a 3D volume", "Save three axes")
    return shape


def _files(root: Path) -> Iterator[Path]:
    """Yield the files of a data set, without those of masks and hidden ones."""
    for path in sorted(root.rglob("*")):
        below = path.relative_to(root).parts
        if below[0] != MASKS and not any(part.startswith(".") for part in below) and path.is_file():
            yield path


def _volumes(root: Path) -> tuple[dict[str, _Volume], int]:
    """Return the volumes by stem, each checked by its header, and how many other files there are."""
    found: dict[str, _Volume] = {}
    others = 0
    for path in _files(root):
        name = _NAME.fullmatch(path.name)
        if name is None:
            others += path.suffix not in (".csv", ".txt", ".json")
            continue
        stem = name[1]
        if stem in found:
            raise MedadError(f"{path} and {found[stem].path} are one volume twice", "Keep one of them")
        volume_shape(path)
        found[stem] = _Volume(path, stem, name["patient"])
    if not found:
        raise MedadError(f"{root} holds no volume", "Name volumes vol_PATIENT_LEVEL.npy, .nii or .nii.gz")
    return found, others


def _labels(root: Path, volumes: dict[str, _Volume]) -> dict[str, Row]:
    """Return the row of every volume in ``labels.csv`` by stem; none where there is no such file."""
    if not (root / LABELS).is_file():
        return {}
    names = {
        name: v.stem for v in volumes.values() for name in (v.stem, v.path.name, v.path.relative_to(root).as_posix())
    }
    rows: dict[str, Row] = {}
    seen: dict[str, int] = {}
    for row in read_sheet(root / LABELS, ("file", "label")).rows:
        stem = names.get(row.need("file"))
        if stem is None:
            row.fail("file", f"there is no volume {row.get('file')}", "Restore the volume or remove the line")
        only_once(row, "file", stem, seen)
        if row.need("label") not in ("0", "1"):
            row.fail("label", "must be 0 or 1", "Write 0 for healthy and 1 for abnormal")
        rows[stem] = row
    for stem, volume in volumes.items():
        if stem not in rows:
            raise MedadError(f"{root / LABELS} has no line for {volume.path}", "Add one with its label")
    return rows


def _tested(root: Path, patients: set[str]) -> dict[str, int]:
    """Return the test patients with the line of ``test.txt`` that names each."""
    path = root / TEST
    if not path.is_file():
        return {}
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise MedadError(f"{path} cannot be read ({type(error).__name__})", "Write one patient a line") from None
    named = {text.strip(): number for number, text in enumerate(lines, 1) if text.strip()}
    for patient, line in named.items():
        if patient not in patients:
            raise MedadError(
                f"{path}, line {line}: there is no volume of patient {patient}", "Correct or remove the line"
            )
    return named


def _folds(root: Path, patients: set[str], tested: dict[str, int]) -> dict[str, int]:
    """Return the fold of each patient in ``folds.csv``; refuse folds in which a patient has two places."""
    if not (root / FOLDS).is_file():
        return {}
    first: dict[str, tuple[str, int]] = {}
    for row in read_sheet(root / FOLDS, ("patient", "fold")).rows:
        patient, fold = row.need("patient"), row.need("fold")
        if not fold.isdecimal() or int(fold) < 1:
            row.fail("fold", "must be a whole number", "Number the folds 1, 2, 3")
        if patient not in patients:
            row.fail("patient", f"there is no volume of patient {patient}", "Correct or remove the line")
        if patient in tested:
            row.fail("patient", f"{patient} is in {TEST} too (line {tested[patient]})", "Give each patient one place")
        other, line = first.setdefault(patient, (fold, row.line))
        if int(other) != int(fold):
            row.fail("patient", f"{patient} is in fold {other} too (line {line})", "Give each patient one place")
    return {patient: int(fold) for patient, (fold, _) in first.items()}


def _masks(root: Path, volumes: dict[str, _Volume]) -> tuple[dict[str, Path], list[str]]:
    """Return the masks by stem, checked against their volumes, and a note on those of no volume."""
    found = {p.stem: p for p in sorted((root / MASKS).glob("*.npy"))}
    for stem, path in found.items():
        if stem not in volumes:
            continue
        shape, volume = volume_shape(path), volumes[stem].path
        # The axes of NIfTI lie in another order, which its affine tells: its decoder compares.
        if volume.suffix == ".npy" and shape != volume_shape(volume):
            raise MedadError(f"mask {path} has another size than {volume}", "Make it on the same grid")
    strays = len(found.keys() - volumes.keys())
    return found, [f"{strays} masks without a volume left out"] if strays else []


def _sample(volume: _Volume, row: Row | None, role: Role | None, mask: Path | None) -> Sample:
    if row is None:
        return Sample(volume.path, volume.patient, 0, role=role, mask=mask)
    label, severity = int(row.get("label")), row.number("severity")
    kind = row.get("kind")
    return Sample(volume.path, volume.patient, label, kind, role=role, mask=mask, severity=severity)


@layout("volumes")
def read_volumes(root: Path, options: Options) -> Table:
    """Read ``ROOT/**/vol_{patient}_{level}.npy|.nii|.nii.gz``; of each volume only the header is looked at.

    ``labels.csv`` (file, label 0 or 1, and where known kind, severity) labels every volume; without it all are
    healthy. ``test.txt`` (a patient a line) names who tests. ``folds.csv`` (patient, fold from 1) numbers the
    folds of cross-validation; nobody has two places. ``masks/<stem>.npy`` marks what is abnormal.
    """
    validated(VolumesOptions, options, "options of layout volumes")
    volumes, others = _volumes(root)
    patients = {v.patient for v in volumes.values()}
    rows = _labels(root, volumes)
    tested = _tested(root, patients)
    folds = _folds(root, patients, tested)
    masks, notes = _masks(root, volumes)
    samples = []
    for stem, volume in volumes.items():
        role: Role | None = None
        if tested:
            role = "test" if volume.patient in tested else "train"
        sample = _sample(volume, rows.get(stem), role, masks.get(stem))
        samples.append(replace(sample, fold=folds.get(volume.patient)))
    if others:
        notes.append(f"{others} files that are no volumes left out")
    if not rows:
        notes.append(f"there is no {LABELS}: every volume counts as healthy")
    return Table(tuple(samples), tuple(notes))
