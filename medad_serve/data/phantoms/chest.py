"""A folder of chest-film phantoms laid out as Kermany's chest X-rays, with what every pneumonia filled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from medad_serve.data.phantoms.chest_body import Chest, Frame, lungs
from medad_serve.data.phantoms.chest_film import chest_film, draw_shape
from medad_serve.data.phantoms.chest_opacities import KINDS, Kind, draw_opacity
from medad_serve.data.phantoms.chest_storage import STORAGES, Film, Storage, save_film
from medad_serve.data.phantoms.drawing import Mask
from medad_serve.data.phantoms.folder import TEST_SHARE, Row, refuse_impossible, write_csv, write_patients
from medad_serve.files import whole_directory

_GERMS: dict[Kind, str] = {"lobar": "bacteria", "patchy": "virus"}
_MASKS = Path("masks")


@dataclass(frozen=True)
class _Dealt:
    """What a patient gets."""

    kind: Kind | None
    grade: float
    tests: bool
    storage: Storage
    number: int
    """In the name, told by class as in Kermany's files."""

    @property
    def folder(self) -> Path:
        return Path("test" if self.tests else "train", "PNEUMONIA" if self.kind else "NORMAL")

    def name(self, index: int, slices: int) -> str:
        """Return the name of one of a patient's films, without its ending."""
        if self.kind is None:
            return f"IM-{self.number:04d}-{index + 1:04d}"
        return f"person{self.number}_{_GERMS[self.kind]}_{self.number * slices + index}"


def write_chest(out: Path, *, healthy: int, abnormal: int, slices: int = 1, seed: int = 0) -> None:
    """Write ``healthy`` + ``abnormal`` patients of ``slices`` films each into ``out``, whole or not at all.

    ``OUT/{train,test}/{NORMAL,PNEUMONIA}/`` holds ``IM-<patient>-<n>`` and ``person<patient>_<germ>_<n>``: bacteria
    fill a lobe, viruses patches of both lungs. Half are 8-bit PNG and JPEG, half DICOM (CR and DX, 10 to 16 bits,
    MONOCHROME1 and 2, shown by a table, a window or neither), as many in each way of either class. Sizes and ratios
    differ. ``OUT/opacities.csv`` (file, kind, grade, share of the lungs) tells of every film with pneumonia,
    ``OUT/masks/<same name>.png`` where (255). The same seed writes the same bytes. Raises MedadError when ``out``
    holds anything or a count is impossible.
    """
    refuse_impossible(out, healthy=healthy, abnormal=abnormal, slices=slices)
    dealt = _deal(np.random.default_rng([seed, 0]), healthy, abnormal)
    with whole_directory(out) as folder:
        for part in {each.folder for each in dealt} | {_MASKS}:
            (folder / part).mkdir(parents=True)

        def write(patient: int) -> list[Row]:
            return _write_patient(folder, patient, dealt[patient], slices, seed)

        rows = write_patients(write, len(dealt))
        write_csv(folder / "opacities.csv", ["file", "kind", "grade", "lung_share"], rows)


def _deal(order: np.random.Generator, healthy: int, abnormal: int) -> list[_Dealt]:
    """Return what each patient gets, shuffled; grades are even within each kind, storages within each class."""
    dealt: list[_Dealt] = []
    for sick, count in ((False, healthy), (True, abnormal)):
        tests = max(round(TEST_SHARE * count), int(count > 1))
        first = int(order.integers(100, 2000))
        # Storages in turn, tests and grades in a drawn order: none of the three tells of another.
        places, grades = order.permutation(count), order.permutation(count)
        for patient in range(count):
            grade = (grades[patient] + order.uniform()) / count
            kind = KINDS[grades[patient] % len(KINDS)] if sick else None
            storage = STORAGES[patient % len(STORAGES)]
            dealt.append(_Dealt(kind, float(grade), bool(places[patient] < tests), storage, first + patient))
    return [dealt[place] for place in order.permutation(len(dealt))]


def _write_patient(folder: Path, patient: int, dealt: _Dealt, slices: int, seed: int) -> list[Row]:
    """Write one patient's films; return a row for each that shows pneumonia."""
    rng = np.random.default_rng([seed, 1, patient])
    chest = Chest.draw(rng)
    what = None
    rows: list[Row] = []
    for index in range(slices):
        chest = chest.again(rng) if index else chest
        frame = Frame.of(chest, draw_shape(rng))
        if dealt.kind is not None:
            what = what.again(rng) if what else draw_opacity(rng, frame, dealt.kind, dealt.grade)
        level, mask = chest_film(rng, frame, what)
        path = dealt.folder / f"{dealt.name(index, slices)}{dealt.storage.suffix}"
        film = Film(level, dealt.storage.curve(rng), f"PHANTOM-{patient:04d}", index, chest.half_mm / frame.px)
        save_film(folder / path, film, dealt.storage, seed)
        if dealt.kind is not None:
            _save_mask(folder / _MASKS / f"{path.stem}.png", mask)
            share = mask.sum() / (lungs(frame) > 0.5).sum()
            rows.append(
                {
                    "file": path.as_posix(),
                    "kind": dealt.kind,
                    "grade": f"{dealt.grade:.3f}",
                    "lung_share": f"{share:.3f}",
                }
            )
    return rows


def _save_mask(path: Path, mask: Mask) -> None:
    path.write_bytes(cv2.imencode(".png", mask.astype(np.uint8) * np.uint8(255))[1].tobytes())
