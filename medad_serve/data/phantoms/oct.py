"""A folder of retinal OCT phantoms laid out as Kermany's OCT2017, with the place and the mask of every lesion."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from medad_serve.data.phantoms.drawing import Mask
from medad_serve.data.phantoms.folder import Row, kinds_and_tests, refuse_impossible, write_csv, write_patients
from medad_serve.data.phantoms.oct_eye import Eye
from medad_serve.data.phantoms.oct_lesions import DISEASES, HEALTHY
from medad_serve.data.phantoms.oct_scan import oct_scan
from medad_serve.files import whole_directory

_QUALITY = [cv2.IMWRITE_JPEG_QUALITY, 95]
_SMALLEST = 6  # px; a speck of a mask that is smaller is no lesion of its own


def write_oct(out: Path, *, healthy: int, abnormal: int, slices: int = 2, seed: int = 0) -> None:
    """Write ``healthy`` + ``abnormal`` patients of ``slices`` B-scans each into ``out``, whole or not at all.

    ``OUT/{train,test}/{NORMAL,DRUSEN,CNV,DME}/<class>-<patient>-<n>.jpeg``, 8 bit, 496 x 512. Kinds are drawn
    evenly; no patient is in both train and test. ``OUT/lesions.csv`` holds the box of every lesion (middle and
    extent, px), ``OUT/masks/<class>-<patient>-<n>.png`` its pixels (255). The same seed writes the same bytes.
    Raises MedadError when ``out`` holds anything or a count is impossible.
    """
    refuse_impossible(out, healthy=healthy, abnormal=abnormal, slices=slices)
    order = np.random.default_rng([seed, 0])
    dealt = kinds_and_tests(order, healthy, abnormal, tuple(DISEASES))
    numbers = 1000000 + order.choice(9000000, len(dealt), replace=False)
    with whole_directory(out) as folder:
        (folder / "masks").mkdir()
        for kind, tests in set(dealt):
            _class_folder(folder, kind, tests).mkdir(parents=True)

        def write(patient: int) -> list[Row]:
            kind, tests = dealt[patient]
            stem = f"{kind or 'NORMAL'}-{numbers[patient]}"
            rng = np.random.default_rng([seed, 1, patient])
            return _write_patient(rng, folder, _class_folder(folder, kind, tests) / stem, kind, slices)

        lesions = write_patients(write, len(dealt))
        write_csv(folder / "lesions.csv", ["file", "kind", "row", "col", "height", "width"], lesions)


def _class_folder(folder: Path, kind: str, tests: bool) -> Path:
    return folder / ("test" if tests else "train") / (kind or "NORMAL")


def _write_patient(rng: np.random.Generator, folder: Path, stem: Path, kind: str, slices: int) -> list[Row]:
    """Write one patient's scans; return the rows of the lesions in them."""
    middle = Eye.draw(rng)
    disease = DISEASES[kind](rng, middle) if kind else HEALTHY
    rows: list[Row] = []
    for index in range(slices):
        eye = middle if index == 0 else middle.neighbour(rng)
        here = disease if index == 0 else disease.neighbour(rng)
        image, mask = oct_scan(rng, eye, here)
        path = stem.with_name(f"{stem.name}-{index + 1}.jpeg")
        path.write_bytes(cv2.imencode(".jpeg", image, _QUALITY)[1].tobytes())
        if kind:
            drawn = cv2.imencode(".png", mask.astype(np.uint8) * 255)[1]
            (folder / "masks" / f"{path.stem}.png").write_bytes(drawn.tobytes())
            rows += _lesion_rows(path.relative_to(folder), kind, mask)
    return rows


def _lesion_rows(path: Path, kind: str, mask: Mask) -> list[Row]:
    """Return a row for each connected part of a mask: its middle and its extent."""
    _, _, parts, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    return [
        {
            "file": path.as_posix(),
            "kind": kind,
            "row": f"{top + (height - 1) / 2:.1f}",
            "col": f"{left + (width - 1) / 2:.1f}",
            "height": height,
            "width": width,
        }
        for left, top, width, height, area in parts[1:].tolist()
        if area >= _SMALLEST
    ]
