"""What a trained model could not reconstruct, as NIfTI on the grid of each source."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medad_serve.data import Sample, read_table
from medad_serve.data.cache import Progress
from medad_serve.errors import InputError, MedadError
from medad_serve.files import whole_directory
from medad_serve.io import Pixels, decode
from medad_serve.io.nifti import is_nifti, write_nifti
from medad_serve.models import AnomalyModel
from medad_serve.models.base import device_for
from medad_serve.prep import check_input, prepare
from medad_serve.prep.window import FloatArray
from medad_serve.training.config import absolute
from medad_serve.training.run import Run, open_run
from medad_serve.vertebrae import CropFacts, read_index

INDEX = "errormaps.csv"


@dataclass(frozen=True)
class ErrorMaps:
    """What was written."""

    files: tuple[Path, ...]
    notes: tuple[str, ...]
    """Files that could not be used and why, and maps whose place is not known."""


class _Places:
    """Affines of volumes that do not carry their own, from the ``vertebrae.json`` beside them."""

    def __init__(self) -> None:
        self.known: dict[Path, dict[str, CropFacts]] = {}

    def of(self, path: Path) -> NDArray[np.float64] | None:
        if path.parent not in self.known:
            self.known[path.parent] = read_index(path.parent)
        facts = self.known[path.parent].get(path.name)
        return None if facts is None else np.array(facts.affine)


def error_map(model: AnomalyModel, run: Run, pixels: Pixels) -> tuple[FloatArray, float]:
    """Return the squared reconstruction error on the source grid ``(D, H, W)``, and the highest score.

    Of a scan cut into regions each lies in its place, the larger where two overlap, 0 elsewhere.
    """
    prepared = prepare(pixels, run.config.prep)
    device = next(model.parameters()).device
    out = np.zeros(pixels.array.shape[:3], np.float32)
    highest = -np.inf
    for item, (values, geometry) in enumerate(zip(prepared.tensor, prepared.geometries, strict=True)):
        x = torch.from_numpy(values[None]).to(device)
        with torch.inference_mode():
            found = model(x)
        error = (x - found["reconstruction"]).square().mean(dim=1)[0].float().cpu().numpy()
        there = geometry.to_source(error)
        place = out if there.ndim == 3 else out[item]
        np.maximum(place, there, out=place)
        highest = max(highest, float(found["score"][0]))
    return out, highest


def _targets(samples: tuple[Sample, ...], root: Path) -> Iterator[Path]:
    """Yield the name of each map: the source's, in the same folder below ``root``; never one twice."""
    taken: set[Path] = set()
    for sample in samples:
        path = sample.path
        folder = path.parent.relative_to(root) if path.is_relative_to(root) else Path()
        stem = path.name.removesuffix(".gz").removesuffix(path.suffixes[0] if path.suffix == ".gz" else path.suffix)
        target, number = folder / f"{stem}_error.nii.gz", 1
        while target in taken:
            number += 1
            target = folder / f"{stem}-{number}_error.nii.gz"
        taken.add(target)
        yield target


def _write(target: Path, error: FloatArray, sample: Sample, pixels: Pixels, places: _Places) -> str:
    """Write one map where its source lies; return what a reader should know of that."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with sample.path.open("rb") as file:
        like = sample.path if is_nifti(file.read(352)) else None
    if like is not None:
        write_nifti(target, error, like=like)
        return ""
    affine = pixels.affine if pixels.affine is not None else places.of(sample.path)
    if affine is not None:
        write_nifti(target, error, affine)
        return ""
    write_nifti(target, error, np.eye(4))
    return f"{target.name}: where it lies is not known, so its voxels are 1 mm from the origin"


def _open(run: Path) -> tuple[Run, AnomalyModel]:
    opened = open_run(run)
    model = opened.trained()
    if "reconstruction" not in model.outputs:
        raise MedadError(f"{opened.path} is of model {opened.config.model}, which reconstructs nothing", "Name another")
    return opened, model.to(device_for(opened.config.device))


def write_errormaps(run: Path, out: Path, *, data: str | None = None, progress: Progress | None = None) -> ErrorMaps:
    """Write the error map of every case into the new or empty folder ``out``, whole or not at all.

    ``data`` is ``layout:directory``, by default that of the run. A map has shape and affine of the NIfTI it
    comes from; that of a ``.npy`` crop takes its place from ``vertebrae.json`` beside the crop. ``errormaps.csv``
    lists every map with its label, the mean error and the model's score. Raises MedadError where the model
    reconstructs nothing, no case is usable, or ``out`` holds something.
    """
    opened, model = _open(run)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise MedadError(f"{out} is not an empty folder", "Name a new one")
    source = absolute(data) if data else opened.config.data
    table = read_table(source, {} if data else opened.config.data_options)
    targets = list(_targets(table.samples, Path(source.partition(":")[2])))
    rows: list[dict[str, Any]] = []
    notes, places = list(table.notes), _Places()
    shown = progress(table.samples, len(table.samples)) if progress else table.samples
    with whole_directory(out) as folder:
        for sample, target in zip(shown, targets, strict=True):
            try:
                pixels = decode(sample.path)
                check_input(pixels, opened.config.input, opened.config.prep)
                error, score = error_map(model, opened, pixels)
                note = _write(folder / target, error, sample, pixels, places)
            except InputError as fault:
                notes.append(f"{sample.path}: {fault}")
                continue
            notes += [note] * bool(note)
            rows.append({"file": target, "label": sample.label, "mean_error": f"{error.mean():.6g}", "score": score})
        if not rows:
            raise MedadError(f"none of {len(table.samples)} files could be used ({notes[-1]})", "Check the data")
        with (folder / INDEX).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    return ErrorMaps(tuple(out / row["file"] for row in rows), tuple(notes))
