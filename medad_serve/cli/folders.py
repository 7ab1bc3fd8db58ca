"""What a folder holds: DICOM files by their series, and volumes, images and packages, each of its own.

Told by the first bytes, and by the ending of the name where those say nothing: a damaged file is answered with what is
wrong with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pydicom.filereader import read_partial
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID

from medad_serve.io.elements import is_dicom
from medad_serve.io.image import JPEG, PNG
from medad_serve.io.members import ZIP
from medad_serve.io.nifti import holds_nifti
from medad_serve.io.numpy_file import NPY
from medad_serve.io.quiet import quiet
from medad_serve.io.tags import SERIES, TAGS, series_digest

HEAD_BYTES = 4096
DICOM_NAMES = (".dcm", ".dicom", ".ima")
OTHER_NAMES = (".nii", ".nii.gz", ".npy", ".png", ".jpg", ".jpeg", ".zip", ".tif", ".tiff", ".bmp")


_PIXELS = frozenset(TAGS[keyword] for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"))
_WANTED: list[BaseTag | int] = [*map(Tag, (*SERIES, "SeriesNumber", "SOPClassUID", "Rows"))]


class _Stated(NamedTuple):
    """What a DICOM file states of itself."""

    series: str = ""
    """As of :func:`series_digest`."""
    number: int | None = None
    lacks_pixels: bool = False


class Series(NamedTuple):
    """The files of one series, and its number where they state one."""

    files: list[Path]
    number: int | None


class Contents(NamedTuple):
    """What the files of one folder are."""

    series: list[Series]
    """In the order of their first files."""
    others: list[Path]
    """Answered one by one."""
    left_out: list[Path]
    """Neither DICOM nor anything else that is read."""
    without_pixels: list[Path]
    """DICOM objects that are no images: structure sets, reports of doses."""


def contents_of(files: Sequence[Path]) -> Contents:
    """Tell the files of a folder apart, keeping their order.

    DICOM files that state neither patient, study nor series, or cannot be read that far, go with those that do where
    these are of one series, and are answered alone where they are of several.
    """
    series: dict[str, Series] = {}
    unclear: list[Path] = []
    others: list[Path] = []
    left_out: list[Path] = []
    without_pixels: list[Path] = []
    for file in files:
        if not _may_be_dicom(file):
            (others if _is_other(file) else left_out).append(file)
            continue
        stated = _stated_by(file)
        if stated.lacks_pixels:
            without_pixels.append(file)
        elif not stated.series:
            unclear.append(file)
        else:
            series.setdefault(stated.series, Series([], stated.number)).files.append(file)
    if unclear and len(series) < 2:
        known = next(iter(series.values()), Series([], None))
        together = {*known.files, *unclear}
        series, unclear = {"": Series([file for file in files if file in together], known.number)}, []
    return Contents(list(series.values()), [*others, *unclear], left_out, without_pixels)


def names_of(folder: Path, series: Sequence[Series]) -> Iterator[Path]:
    """Yield a name for each series of a folder: the folder's, with the series' number where there are several.

    Where numbers are missing or the same, they are counted.
    """
    numbers = [each.number for each in series]
    if None in numbers or len(set(numbers)) < len(numbers):
        numbers = list(range(1, len(series) + 1))
    for number in numbers:
        yield folder if len(series) == 1 else folder.parent / f"{folder.name}#{number}"


def _head(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(HEAD_BYTES)
    except OSError:  # told by whoever sends it
        return b""


def _may_be_dicom(file: Path) -> bool:
    head = _head(file)
    return is_dicom(head) or (file.name.lower().endswith(DICOM_NAMES) and not _is_known(head))


def _is_other(file: Path) -> bool:
    return _is_known(_head(file)) or file.name.lower().endswith(OTHER_NAMES)


def _is_known(head: bytes) -> bool:
    return head.startswith((PNG, JPEG, NPY, *ZIP)) or holds_nifti(head)


def _stated_by(file: Path) -> _Stated:
    """Read a file as far as its pixels; of one that cannot be read that far nothing is known."""
    has_pixels = False

    def at_pixels(tag: BaseTag, vr: str | None, length: int) -> bool:
        nonlocal has_pixels
        has_pixels = tag in _PIXELS
        return has_pixels

    try:
        with quiet(), file.open("rb") as opened:
            ds = read_partial(opened, stop_when=at_pixels, force=True, specific_tags=_WANTED)
            number = ds.get("SeriesNumber")
            kind = UID(ds.get("SOPClassUID") or "")
            # an image can be cut short before its pixels: that is answered, as are kinds that are not known
            is_image = has_pixels or "Rows" in ds or "Image" in kind.name or kind.type != "SOP Class"
            return _Stated(series_digest(ds), None if number is None else int(number), not is_image)
    except Exception:  # pydicom raises almost anything over damaged files
        return _Stated()
