"""Reading single DICOM elements: numbers and short codes, with errors that name the tag.

Values are taken from pydicom's raw elements where they still are raw: a quarter of the time of attribute
access, and no conversion whose warning could quote a value.
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
from functools import cache
from typing import Any

from pydicom.datadict import dictionary_description, dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag

from medad_serve.errors import InputError

DAMAGED = "The file seems damaged: export it again from its source"

_FORMATS = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d", "US or SS": "H"}
_CODE = re.compile(r"[A-Z0-9 _]{1,16}")

_WANTED = """
TransferSyntaxUID SpecificCharacterSet ImageType Modality BodyPartExamined
PatientID StudyInstanceUID SeriesInstanceUID
ImagePositionPatient ImageOrientationPatient PixelSpacing ImagerPixelSpacing
SamplesPerPixel PhotometricInterpretation PlanarConfiguration NumberOfFrames Rows Columns
BitsAllocated BitsStored HighBit PixelRepresentation PixelPaddingValue PixelPaddingRangeLimit
WindowCenter WindowWidth VOILUTFunction VOILUTSequence RescaleSlope RescaleIntercept ModalityLUTSequence
RedPaletteColorLookupTableDescriptor GreenPaletteColorLookupTableDescriptor
BluePaletteColorLookupTableDescriptor RedPaletteColorLookupTableData GreenPaletteColorLookupTableData
BluePaletteColorLookupTableData SegmentedRedPaletteColorLookupTableData
SegmentedGreenPaletteColorLookupTableData SegmentedBluePaletteColorLookupTableData
SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence
ExtendedOffsetTable ExtendedOffsetTableLengths PixelData FloatPixelData DoubleFloatPixelData
"""
TAGS = {word: BaseTag(tag) for word in _WANTED.split() if (tag := tag_for_keyword(word)) is not None}
"""The elements that are read of a file, by keyword; names of people never are."""
SERIES = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID")
"""What tells series apart: UIDs alone are not unique where files were anonymised or copied badly."""


@cache
def label(keyword: str) -> str:
    """Return how errors name a tag, e.g. ``(0028,0010) Rows``."""
    tag = TAGS[keyword]
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X}) {dictionary_description(tag)}"


def holds(ds: Dataset, keyword: str) -> bool:
    """Whether an element is there; ``keyword in ds`` takes ten times as long."""
    return TAGS[keyword] in ds


def element(ds: Dataset, keyword: str) -> DataElement | RawDataElement | None:
    """Return an element as pydicom holds it, raw where it has not been converted.

    Raises:
        InputError: 400, pydicom cannot make sense of it.
    """
    try:
        return ds.get_item(TAGS[keyword])
    except Exception:  # an empty element is converted here, with whatever its damaged VR leads to
        raise InputError(400, f"{label(keyword)} cannot be read", DAMAGED) from None


def numbers(ds: Dataset, keyword: str) -> tuple[float, ...]:
    """Return the values of a numeric element, empty where it is absent or has no value.

    Raises:
        InputError: 400, a value is not a number.
    """
    found = element(ds, keyword)
    if found is None:
        return ()
    try:
        if isinstance(found, RawDataElement):
            return _from_raw(found, keyword)
        value: Any = () if found.value is None or found.value == "" else found.value
        return tuple(float(v) for v in ([value] if isinstance(value, str | int | float) else value))
    except (ValueError, TypeError, struct.error):
        raise InputError(400, f"{label(keyword)} is not a number", DAMAGED) from None


def _from_raw(raw: RawDataElement, keyword: str) -> tuple[float, ...]:
    data: bytes = raw.value or b""
    vr = raw.VR if raw.VR not in (None, "UN") else dictionary_VR(TAGS[keyword])
    form = _FORMATS.get(str(vr))
    if form:
        order = "<" if raw.is_little_endian else ">"
        return tuple(map(float, struct.unpack(f"{order}{len(data) // struct.calcsize(form)}{form}", data)))
    text = data.strip(b" \0")
    return tuple(float(part) for part in text.split(b"\\")) if text else ()


def number(ds: Dataset, keyword: str, default: float) -> float:
    """Return the first value of an element, or ``default`` where it has none."""
    values = numbers(ds, keyword)
    return values[0] if values else default


def whole(ds: Dataset, keyword: str, default: int | None = None) -> int:
    """Return a whole number; without ``default`` the element is required.

    Raises:
        InputError: 400, absent while required, or not a whole number.
    """
    values = numbers(ds, keyword)
    if not values:
        if default is None:
            raise InputError(400, f"{label(keyword)} is missing", DAMAGED)
        return default
    if not math.isfinite(values[0]) or values[0] != int(values[0]):
        raise InputError(400, f"{label(keyword)} is not a whole number", DAMAGED)
    return int(values[0])


def code(ds: Dataset, keyword: str) -> str:
    """Return the first value of a code string (VR CS), or ``""`` where it is none: free text never passes."""
    return codes(ds, keyword)[0]


def codes(ds: Dataset, keyword: str) -> tuple[str, ...]:
    """Return every value of a code string, each as of :func:`code`."""
    texts = (text.strip(" \0").upper() for text in _text(ds, keyword).split("\\"))
    return tuple(text if _CODE.fullmatch(text) else "" for text in texts)


def series_digest(ds: Dataset) -> str:
    """Return what is equal for files of one series of one patient and study, or ``""`` where a file states none.

    It is a digest, so that neither an identifier nor a UID is kept.
    """
    stated = [_text(ds, keyword).strip(" \0") for keyword in SERIES]
    return hashlib.sha256(repr(stated).encode()).hexdigest()[:16] if any(stated) else ""


def _text(ds: Dataset, keyword: str) -> str:
    found = element(ds, keyword)
    value: Any = None if found is None else found.value
    if isinstance(value, bytes):
        return value.decode("latin-1")
    return value if isinstance(value, str) else ""
