"""What decoding and preparing cost, beside their floors and beside stock pipelines that do the same work."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pydicom

from medad_serve.bench.encodings import SIZES, SYNTAXES, Encoded, Syntax, encoded_dicom, encoded_files
from medad_serve.bench.stock import (
    has_plugin,
    monai_pipeline,
    pixel_array,
    pydicom_pipeline,
    read_nifti,
    read_nifti_gz,
    read_npy,
    read_picture,
)
from medad_serve.bench.tables import Cell, Table
from medad_serve.bench.timing import Task, Turns, in_turns
from medad_serve.io import decode
from medad_serve.models import Family
from medad_serve.prep import prepare
from medad_serve.spec import PrepSpec, Window

WINDOW = Window(center=40, width=80)
SIZE = (64, 64)
SECONDS = 0.2
"""Of each task."""
COPY, PARSE, FLOOR, DECODE, BOTH = "copy", "dcmread", "dcmread + pixel_array", "decode", "decode + prepare"
PYDICOM, MONAI = "pydicom's pipeline", "MONAI's pipeline"
DICOM_TASKS = (COPY, PARSE, FLOOR, DECODE, BOTH, PYDICOM, MONAI)
DICOM_COLUMNS = (
    *("encoding", "size", "bits"),
    *(f"{task}, ms" for task in DICOM_TASKS),
    *("decode / floor", "decode + prepare / floor", "pydicom's / ours", "MONAI's / ours"),
)
READERS: dict[str, Callable[[bytes], Any]] = {
    "PNG": read_picture,
    "JPEG": read_picture,
    ".npy": read_npy,
    ".nii": read_nifti,
    ".nii.gz": read_nifti_gz,
}
"""What reads a file that is no DICOM, and nothing more: OpenCV, numpy and nibabel."""
FILE_COLUMNS = (
    *("encoding", "size", "bits", "copy, ms", "floor, ms", "decode, ms", "decode + prepare, ms"),
    *("decode / floor", "decode + prepare / floor"),
)


def bench_dicom(
    sizes: Sequence[int] = SIZES, *, syntaxes: Sequence[Syntax] = SYNTAXES, seconds: float = SECONDS
) -> Table:
    """Time transfer syntaxes at every size, windowed to the brain and resized to 64x64.

    The floor is pydicom's ``pixel_array`` through a decoder that is not ours; nothing stands where none is installed.
    """
    rows = []
    for syntax in syntaxes:
        for size in sizes:
            rows += [_dicom_row(syntax, encoded_dicom(syntax, size, bits), seconds) for bits in syntax.bits]
    title = (
        "DICOM slices to 64x64, medians; MONAI reads a file in the page cache, the others bytes in memory; 16 bits have"
        " a sign and Pixel Padding Value beyond a circle, which ours alone looks for"
    )
    return Table("dicom", title, DICOM_COLUMNS, tuple(rows))


def _dicom_row(syntax: Syntax, encoded: Encoded, seconds: float) -> tuple[Cell, ...]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slice.dcm"
        path.write_bytes(encoded.data)
        timed = in_turns(dict(_dicom_tasks(syntax, encoded, path)), seconds)
    ratios = _ratio(timed, DECODE, FLOOR), _ratio(timed, BOTH, FLOOR), _ratio(timed, PYDICOM, BOTH)
    medians = (_median(timed, task) for task in DICOM_TASKS)
    return encoded.encoding, encoded.size, encoded.bits, *medians, *ratios, _ratio(timed, MONAI, BOTH)


def _dicom_tasks(syntax: Syntax, encoded: Encoded, path: Path) -> Iterator[tuple[str, Task]]:
    data, plugin = encoded.data, syntax.plugin
    yield COPY, encoded.stored.copy
    yield PARSE, lambda: pydicom.dcmread(io.BytesIO(data))
    yield from _our_tasks(data, PrepSpec(window=WINDOW, size=SIZE))
    if has_plugin(plugin):
        yield FLOOR, lambda: pixel_array(data, plugin)
        yield PYDICOM, lambda: pydicom_pipeline(data, plugin, SIZE)
        yield MONAI, monai_pipeline(path, SIZE, WINDOW)


def _our_tasks(data: bytes, prep: PrepSpec) -> Iterator[tuple[str, Task]]:
    yield DECODE, lambda: decode(data)
    yield BOTH, lambda: prepare(decode(data), prep)


def bench_files(size: int = 512, *, seconds: float = SECONDS) -> Table:
    """Time pictures and volumes beside what reads them and does nothing more; volumes are resized to 32x32x32."""
    rows = [_file_row(encoded, seconds) for encoded in encoded_files(size)]
    return Table("files", "Pictures to 64x64 and volumes to 32x32x32, medians", FILE_COLUMNS, tuple(rows))


def _file_row(encoded: Encoded, seconds: float) -> tuple[Cell, ...]:
    data, read = encoded.data, READERS[encoded.encoding]
    size = SIZE if encoded.stored.ndim == 2 else (32, 32, 32)
    tasks = dict(_our_tasks(data, PrepSpec(window=WINDOW, size=size)))
    timed = in_turns({COPY: encoded.stored.copy, FLOOR: lambda: read(data), **tasks}, seconds)
    medians = (_median(timed, task) for task in (COPY, FLOOR, DECODE, BOTH))
    ratios = _ratio(timed, DECODE, FLOOR), _ratio(timed, BOTH, FLOOR)
    return encoded.encoding, encoded.size, encoded.bits, *medians, *ratios


def _median(timed: dict[str, Turns], task: str) -> float | None:
    return timed[task].median if task in timed else None


def _ratio(timed: dict[str, Turns], task: str, to: str) -> float | None:
    return timed[task].ratio(timed[to]) if task in timed and to in timed else None


def bench_given(files: Sequence[bytes], chosen: Family, *, seconds: float = SECONDS) -> Table:
    """Time decode, and decode + prepare for a model, beside bare pydicom, over DICOM files in memory; per file."""

    def each(task: Callable[[bytes], object]) -> Task:
        def run() -> None:
            for data in files:  # one at a time: results that stay would cost fresh memory pages
                task(data)

        return run

    tasks = {
        PARSE: each(lambda data: pydicom.dcmread(io.BytesIO(data))),
        FLOOR: each(lambda data: pydicom.dcmread(io.BytesIO(data)).pixel_array),
        DECODE: each(decode),
        BOTH: each(lambda data: prepare(decode(data), chosen.prep)),
    }
    timed = in_turns(tasks, seconds)
    rows = tuple((task, turns.median / len(files), turns.ratio(timed[FLOOR])) for task, turns in timed.items())
    return Table("given", f"{len(files)} given files, prepared for {chosen.name}", ("task", "ms", "x floor"), rows)
