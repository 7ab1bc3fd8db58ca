"""MVTec AD: ``train/good``, ``test/<kind>`` and, where there are masks, ``ground_truth/<kind>/<name>_mask.png``."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from medad_serve.data.folders import (
    FoldersOptions,
    is_hidden,
    is_image,
    patient_of,
    stem_of,
    subfolders,
    without_repeats,
)
from medad_serve.data.masks import check_mask
from medad_serve.data.rows import only_once, read_sheet
from medad_serve.data.samples import Options, Role, Sample, Table, layout
from medad_serve.errors import MedadError
from medad_serve.spec import validated

MASKS = "ground_truth"
SEVERITY = "severity.csv"
_PLACES: tuple[tuple[str, Role], ...] = (("train", "train"), ("validation", "validation"), ("test", "test"))
_NUMBERED = re.compile(r"_(num_\d+)")
"""Of the magnetic tiles: several exposures of one tile share its number."""


class MvtecOptions(FoldersOptions):
    """How the folders are read; ``patient`` None takes ``num_<n>`` of a name, and otherwise each file by itself."""


def _patient(path: Path, below: str, pattern: str | None) -> str:
    """Return whose image a file is: MVTec numbers the files of every folder from 000, so a name tells nothing."""
    if pattern is not None:
        return patient_of(path, below, pattern).patient
    numbered = _NUMBERED.search(stem_of(path))
    return numbered.group(1) if numbered else below


def _folders(root: Path, options: MvtecOptions) -> list[tuple[Role, Path]]:
    """Return the folders of the classes to read, with the role of the place above them."""
    for place in ("train", "test"):
        if not (root / place).is_dir():
            raise MedadError(f"{root} has no folder {place}", "Lay it out as train/good, test/good, test/<defect>")
    found = [(role, f) for place, role in _PLACES if (root / place).is_dir() for f in subfolders(root / place)]
    names = sorted({folder.name for _, folder in found})
    if unknown := [c for c in options.classes if c not in names]:
        raise MedadError(f"{root} has no class folder {unknown[0]}", f"It has: {', '.join(names)}")
    read = [(role, f) for role, f in found if not options.classes or f.name in options.classes]
    if not any(role == "train" and options.is_normal(f.name) for role, f in read):
        held = ", ".join(f.name for role, f in read if role == "train") or "none"
        raise MedadError(
            f"none of the class folders of {root / 'train'} is known as healthy: {held}",
            "Name it, e.g. data_options.normal=[good]",
        )
    return read


def _images(folder: Path) -> list[Path]:
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and not is_hidden(p.relative_to(folder))]
    found = [p for p in files if is_image(p)]
    if not found:
        raise MedadError(f"folder {folder} holds no image", "Fill it, or leave it out by data_options.classes")
    return found


def _masks(folder: Path) -> dict[str, Path]:
    """Return the masks of a kind by the stem of their image."""
    if not folder.is_dir():
        return {}
    return {stem_of(p).removesuffix("_mask"): p for p in sorted(folder.iterdir()) if p.is_file() and is_image(p)}


def _without_mask(root: Path, samples: list[Sample]) -> list[str]:
    if not (root / MASKS).is_dir():
        return []
    bare = [s for s in samples if s.label and s.mask is None]
    example = f", e.g. {bare[0].path.relative_to(root).as_posix()}" if bare else ""
    return [f"{len(bare)} images of defects have no mask below {MASKS}{example}"] if bare else []


def _with_severity(root: Path, samples: list[Sample]) -> list[Sample]:
    """Return the samples with the severity that ``severity.csv`` gives them."""
    path = root / SEVERITY
    if not path.is_file():
        return samples
    known = {s.path.relative_to(root).as_posix() for s in samples}
    given: dict[str, float] = {}
    lines: dict[str, int] = {}
    for row in read_sheet(path, ("path", "severity")).rows:
        name = Path(row.need("path")).as_posix()
        only_once(row, "path", name, lines)
        if name not in known:
            row.fail("path", "no image that is read lies there", "Paths are relative to the CSV, e.g. test/fault/1.png")
        row.need("severity")
        given[name] = row.number("severity") or 0.0
        if given[name] < 0:
            row.fail("severity", "must not be negative", "Write 0 for no fault")
    return [replace(s, severity=given.get(s.path.relative_to(root).as_posix(), s.severity)) for s in samples]


@layout("mvtec")
def read_mvtec(root: Path, options: Options) -> Table:
    """Read MVTec AD's folders, with or without masks; the defect's folder is its ``kind``.

    ``train`` is the pool that a run divides, ``validation`` chooses where it is there, ``test`` reports. Files in
    folders below a kind count too, each named mask stands for the image of the same name. ``severity.csv`` (columns
    path, severity) grades images. A patient of ``test`` who is in ``train`` too loses the images there. Raises
    MedadError for an empty folder, a mask of another size than its image, or a line of ``severity.csv`` that fits
    no image.
    """
    checked = validated(MvtecOptions, options, "options of layout mvtec")
    samples: list[Sample] = []
    for role, folder in _folders(root, checked):
        normal = checked.is_normal(folder.name)
        masks = {} if normal else _masks(root / MASKS / folder.name)
        for path in _images(folder):
            below = path.relative_to(root).as_posix()
            mask = masks.get(stem_of(path))
            if mask is not None:
                check_mask(path, mask)
            patient = _patient(path, below, checked.patient)
            kind = "" if normal else folder.name
            samples.append(Sample(path, patient, int(not normal), kind=kind, role=role, mask=mask))
    notes = _without_mask(root, samples)
    kept, repeats = without_repeats(_with_severity(root, samples))
    return Table(tuple(kept), (*repeats, *notes))
