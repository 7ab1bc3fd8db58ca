"""A folder of head-CT phantoms in the layout of CQ500: DICOM files, three readers, and where the bleeds are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from medad_serve.data.phantoms.ct_dicom import Encoding, save_ct
from medad_serve.data.phantoms.folder import Row, refuse_impossible, write_csv, write_patients
from medad_serve.data.phantoms.head_anatomy import (
    HAEMORRHAGE_MM,
    Haemorrhage,
    Head,
    draw_haemorrhage,
    head_ct_slice,
)
from medad_serve.files import whole_directory

_FINDINGS = ("ICH", "Fracture", "MassEffect", "MidlineShift")
_READERS = ("R1", "R2", "R3")
_DISSENT = 0.06
"""How often one of the three readers stands against the truth; the majority never does."""


def write_head_ct(out: Path, *, healthy: int, abnormal: int, slices: int = 2, seed: int = 0) -> None:
    """Write ``healthy`` + ``abnormal`` patients of ``slices`` files each into ``out``, whole or not at all.

    ``OUT/CQ500CT<n> CQ500CT<n>/Unknown Study/CT Plain/CT00000<i>.dcm``, ``OUT/reads.csv`` with the readers'
    findings and ``OUT/haemorrhages.csv`` with the place (px) and size (mm) of every bleed. The same seed
    writes the same bytes. Raises MedadError when ``out`` holds anything or a count is impossible.
    """
    refuse_impossible(out, healthy=healthy, abnormal=abnormal, slices=slices)
    order = np.random.default_rng([seed, 0])
    # Shuffled, so that a patient's number tells nothing.
    bleeding = order.permutation(np.arange(healthy + abnormal) < abnormal)
    reads = [_read(order, patient, bool(bled)) for patient, bled in enumerate(bleeding)]
    with whole_directory(out) as folder:

        def write(patient: int) -> list[Row]:
            return _write_patient(folder, patient, bool(bleeding[patient]), slices, seed)

        bleeds = write_patients(write, len(bleeding))
        write_csv(folder / "reads.csv", list(reads[0]), reads)
        write_csv(folder / "haemorrhages.csv", ["patient", "file", "row", "col", "diameter_mm", "hu"], bleeds)


def _write_patient(folder: Path, patient: int, bled: bool, slices: int, seed: int) -> list[Row]:
    """Write one patient's slices; return the rows of its haemorrhages."""
    rng = np.random.default_rng([seed, 1, patient])
    name = f"CQ500CT{patient}"
    series = folder / f"{name} {name}" / "Unknown Study" / "CT Plain"
    series.mkdir(parents=True)
    middle = Head.draw(rng)
    bleed = draw_haemorrhage(rng, middle) if bled else None
    encoding = Encoding.draw(rng)
    rows: list[Row] = []
    for index in range(slices):
        head = middle if index == 0 else middle.neighbour(rng)
        here = bleed if bleed is None or index == 0 else _next_to(rng, bleed)
        values, _ = head_ct_slice(rng, head, here)
        path = series / f"CT{index:06d}.dcm"
        save_ct(path, values, patient=name, index=index, spacing_mm=head.spacing_mm, encoding=encoding, seed=seed)
        if here is not None:
            rows.append(_bleed_row(patient, path.relative_to(folder), here))
    return rows


def _next_to(rng: np.random.Generator, bleed: Haemorrhage) -> Haemorrhage:
    """Return the bleed as a neighbouring slice cuts it: a little wider or narrower."""
    diameter = np.clip(bleed.diameter_mm * rng.uniform(0.95, 1.05), *HAEMORRHAGE_MM)
    return replace(bleed, diameter_mm=float(diameter))


def _bleed_row(patient: int, path: Path, bleed: Haemorrhage) -> Row:
    return {
        "patient": f"CQ500-CT-{patient}",
        "file": path.as_posix(),
        "row": f"{bleed.row:.2f}",
        "col": f"{bleed.col:.2f}",
        "diameter_mm": f"{bleed.diameter_mm:.2f}",
        "hu": f"{bleed.hu:.1f}",
    }


def _read(rng: np.random.Generator, patient: int, bled: bool) -> Row:
    """Return the three readers' votes: at most one of them errs, so that the majority is the truth."""
    row: Row = {"name": f"CQ500-CT-{patient}", "Category": f"B{rng.integers(1, 3)}"}
    for finding in _FINDINGS:
        truth = bled and finding == "ICH"
        dissenter = rng.choice(_READERS) if rng.random() < _DISSENT else None
        row |= {f"{reader}:{finding}": int(truth != (reader == dissenter)) for reader in _READERS}
    return row
