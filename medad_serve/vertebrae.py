"""A folder of vertebra crops: ``vol_{patient}_{level}.npy``, and ``vertebrae.json`` that says where each lies."""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medad_serve.errors import InputError, MedadError
from medad_serve.files import write_whole
from medad_serve.io import Pixels, decode
from medad_serve.prep.regions import Affine, Region, Scheme, Structure, cut_whole, find_structures, measured
from medad_serve.prep.window import FloatArray
from medad_serve.spec import Frozen, Regions, Window, validated

INDEX = "vertebrae.json"
Format = Literal["npy", "nifti"]
SUFFIX: dict[Format, str] = {"npy": ".npy", "nifti": ".nii.gz"}
LOCK_SECONDS = 60.0
"""A lock held for longer than this was left by a process that was killed."""


class CropFacts(Frozen):
    """Where one crop comes from."""

    patient: str
    level: str
    label: int
    """In the mask that it was cut by."""
    spacing_mm: float
    window: Window
    affine: tuple[tuple[float, float, float, float], ...]
    """(4, 4), crop index (slice, row, column) to RAS+ millimetres of the scan."""


@dataclass(frozen=True)
class Cropped:
    """What became of one scan."""

    files: tuple[Path, ...]
    left_out: tuple[Structure, ...]


def read_index(folder: Path) -> dict[str, CropFacts]:
    """Return what ``vertebrae.json`` of a folder says of each file; nothing where there is none."""
    path = folder / INDEX
    if not path.is_file():
        return {}
    try:
        stored = json.loads(path.read_bytes())
    except (OSError, ValueError):
        stored = None
    if not isinstance(stored, dict):
        raise MedadError(f"{path} cannot be read", "Crop into another folder")
    return {name: validated(CropFacts, facts, f"{path}, {name}") for name, facts in stored.items()}


def patient_of(path: Path) -> str:
    """Make a patient's name of a file's: letters, digits, dots and dashes."""
    stem = re.sub(r"(\.nii)?(\.gz)?$", "", path.name) if ".nii" in path.name else path.stem
    return re.sub(r"[^A-Za-z0-9.-]+", "-", stem).strip("-.")


def _checked_patient(patient: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*", patient):
        raise MedadError(
            f"{patient!r} cannot be a patient in a file name", "Give --patient letters, digits, dots and dashes"
        )
    return patient


def _read(path: Path) -> Pixels:
    try:
        return decode(path)
    except InputError as error:
        raise MedadError(f"{path}: {error.message}", error.hint) from None


def _read_pair(ct: Path, mask: Path, spec: Regions) -> tuple[FloatArray, NDArray[np.int32], Affine]:
    """Read the values of a scan and the labels on its grid, with the affine of both."""
    scan, marked = _read(ct), _read(mask)
    if scan.affine is None or marked.affine is None:
        raise MedadError(
            f"{ct if scan.affine is None else mask} does not say where it lies (it has no affine)", "Give NIfTI files"
        )
    grids = f"{mask} is not on the grid of {ct}"
    if marked.array.shape != scan.array.shape:
        sizes = " and ".join("x".join(map(str, found.array.shape)) for found in (scan, marked))
        raise MedadError(f"{grids}: they are {sizes}", "Resample the mask to the scan")
    corners = np.array([*np.ndindex(2, 2, 2)]) * (np.array(scan.array.shape) - 1)
    difference = marked.affine - scan.affine
    apart = np.linalg.norm(corners @ difference[:3, :3].T + difference[:3, 3], axis=1).max()
    if apart > np.linalg.norm(scan.affine[:3, :3], axis=0).min() / 2:
        raise MedadError(f"{grids}: they lie {apart:.1f} mm apart", "Resample the mask to the scan")
    if (marked.array != np.rint(marked.array)).any():
        raise MedadError(f"{mask} holds no labels: values are not whole numbers", "Name the CT first, then its mask")
    return measured(scan, spec), marked.array.astype(np.int32), scan.affine


def _write(path: Path, region: Region, kind: Format) -> None:
    if kind == "nifti":
        from medad_serve.io.nifti import write_nifti

        write_nifti(path, region.volume, region.affine)
    else:
        np.save(path, region.volume)


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """Yield a hidden folder within ``out``; what is left in it goes, and ``out`` too where it stayed empty."""
    out.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=out, prefix=".crop-") as staged:
            yield Path(staged)
    finally:
        with suppress(OSError):
            out.rmdir()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes that crop into the folder waiting."""
    lock, give_up = folder / f".{INDEX}.lock", time.monotonic() + 2 * LOCK_SECONDS
    while True:
        try:
            os.close(os.open(lock, os.O_CREAT | os.O_EXCL))
            break
        except FileExistsError:
            try:
                stale = time.time() - lock.stat().st_mtime > LOCK_SECONDS
            except FileNotFoundError:
                continue
            if stale or time.monotonic() > give_up:
                lock.unlink(missing_ok=True)
            time.sleep(0.05)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


def _place(staged: Path, out: Path, facts: dict[str, CropFacts], patient: str, force: bool) -> None:
    """Move staged crops into ``out`` and enter them in its index, or refuse where the patient is there."""
    with _alone(out):
        index = read_index(out)
        earlier = {p.name for p in out.glob(f"vol_{patient}_*") if p.name not in index}
        earlier |= {name for name, known in index.items() if known.patient == patient}
        if earlier and not force:
            raise MedadError(f"{out} already holds crops of patient {patient}", "Give another --patient, or --force")
        for name in facts:
            (staged / name).replace(out / name)
        kept = {name: known for name, known in index.items() if name not in earlier} | facts
        plain = {name: known.model_dump(mode="json") for name, known in sorted(kept.items())}
        write_whole(out / INDEX, json.dumps(plain, indent=1) + "\n")
        for name in earlier - facts.keys():
            (out / name).unlink(missing_ok=True)


def crop_scan(
    ct: Path,
    mask: Path,
    out: Path,
    *,
    spec: Regions,
    patient: str | None = None,
    scheme: Scheme = "auto",
    kind: Format = "npy",
    force: bool = False,
) -> Cropped:
    """Cut every whole vertebra of a CT into ``out``: all of them, or on any failure none.

    Raises MedadError naming file and reason: mask and scan on different grids, no affine, no whole vertebra, or
    crops of this patient that are there already.
    """
    patient = _checked_patient(patient_of(ct) if patient is None else patient)
    array, labels, affine = _read_pair(ct, mask, spec)
    try:
        found = find_structures(labels, affine, spec, scheme)
    except InputError as error:
        raise MedadError(f"{mask}: {error.message}", f"{error.hint}, or give --scheme") from None
    left_out = tuple(s for s in found if s.fault)
    if len(left_out) == len(found):
        why = "; ".join(f"{s.name} {s.fault}" for s in left_out) or "no vertebra is labelled"
        raise MedadError(f"{mask} marks no vertebra that can be cut ({why})", "Give a scan that holds one whole")
    facts: dict[str, CropFacts] = {}
    with _staging(out) as staged:
        for region in cut_whole(array, affine, found, spec):
            name = f"vol_{patient}_{region.name}{SUFFIX[kind]}"
            _write(staged / name, region, kind)
            facts[name] = _facts(patient, region, spec)
        _place(staged, out, facts, patient, force)
    return Cropped(tuple(out / name for name in facts), left_out)


def _facts(patient: str, region: Region, spec: Regions) -> CropFacts:
    return CropFacts(
        patient=patient,
        level=region.name,
        label=region.label,
        spacing_mm=spec.spacing_mm,
        window=spec.window,
        affine=region.affine.tolist(),
    )
