"""A folder of vertebrae cropped from phantom CT: healthy and fractured ones, with what each fracture changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medad_serve.data.phantoms.folder import Row, kinds_and_tests, refuse_impossible, write_csv, write_patients
from medad_serve.data.phantoms.vertebra_shape import KINDS, LEVELS, Kind, draw_fracture
from medad_serve.data.phantoms.vertebra_volume import Patient, vertebra_volume
from medad_serve.errors import MedadError
from medad_serve.files import whole_directory

_ALSO = 0.3
"""How often a further vertebra of a patient with a fracture is fractured too."""


def write_vertebrae(out: Path, *, healthy: int, abnormal: int, slices: int = 1, seed: int = 0, size: int = 128) -> None:
    """Write ``healthy`` + ``abnormal`` patients of ``slices`` vertebrae each into ``out``, whole or not at all.

    ``OUT/vol_<patient>_<level>.npy``, float32 (size, size, size) in 0..1 of a bone window, slices upward, rows
    backward, columns leftward, 128 mm a side. ``OUT/labels.csv`` (file, label, kind, severity) labels each,
    ``OUT/test.txt`` names the patients who test, ``OUT/fractures.csv`` (file, kind, height_loss) tells what a body
    lost at its worst place (0..1), and ``OUT/masks/<same name>`` is uint8, 1 where the fracture changed something.
    Every abnormal patient has a fracture, of the kinds in turn; his other vertebrae mostly have none. The same
    seed writes the same bytes. Raises MedadError when ``out`` holds anything or a count is impossible.
    """
    refuse_impossible(out, healthy=healthy, abnormal=abnormal, slices=slices)
    if slices > len(LEVELS):
        raise MedadError(
            f"cannot write {slices} vertebrae of a patient",
            f"Ask for at most {len(LEVELS)}: {LEVELS[0]} to {LEVELS[-1]}",
        )
    dealt = kinds_and_tests(np.random.default_rng([seed, 0]), healthy, abnormal, KINDS)
    digits = max(3, len(str(len(dealt) - 1)))
    with whole_directory(out) as folder:
        (folder / "masks").mkdir()

        def write(patient: int) -> list[Row]:
            rng = np.random.default_rng([seed, 1, patient])
            return _write_patient(rng, folder, f"{patient:0{digits}d}", _kind(dealt[patient][0]), slices, size)

        rows = write_patients(write, len(dealt))
        write_csv(folder / "labels.csv", ["file", "label", "kind", "severity"], map(_label, rows))
        write_csv(folder / "fractures.csv", ["file", "kind", "height_loss"], [row for row in rows if row["kind"]])
        tests = [f"{patient:0{digits}d}\n" for patient, (_, tested) in enumerate(dealt) if tested]
        (folder / "test.txt").write_text("".join(tests), encoding="utf-8")


def _kind(name: str) -> Kind | None:
    return next((kind for kind in KINDS if kind == name), None)


def _label(row: Row) -> Row:
    return {"file": row["file"], "label": int(bool(row["kind"])), "kind": row["kind"], "severity": row["height_loss"]}


def _write_patient(
    rng: np.random.Generator, folder: Path, patient: str, kind: Kind | None, slices: int, size: int
) -> list[Row]:
    """Write one patient's vertebrae, from above downward; return a row for each."""
    body = Patient.draw(rng)
    first = int(rng.integers(len(LEVELS) - slices + 1))
    certain = int(rng.integers(slices))
    rows: list[Row] = []
    for index in range(slices):
        breaks = kind is not None and (index == certain or rng.random() < _ALSO)
        fracture = draw_fracture(rng, kind) if breaks and kind else None
        drawn = vertebra_volume(rng, body, first + index, fracture, size=size)
        name = f"vol_{patient}_{LEVELS[first + index]}.npy"
        np.save(folder / name, drawn.values)
        if fracture is not None:
            np.save(folder / "masks" / name, drawn.changed.astype(np.uint8))
        rows.append(
            {
                "file": name,
                "kind": fracture.kind if fracture else "",
                "height_loss": f"{fracture.loss if fracture else 0:.3f}",
            }
        )
    return rows
