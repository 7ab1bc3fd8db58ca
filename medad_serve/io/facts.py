"""What else a DICOM file says of its pixels: plane, spacing, windows; nothing that names a person."""

from __future__ import annotations

import math

from pydicom.dataset import Dataset
from pydicom.uid import UID

from medad_serve.errors import InputError
from medad_serve.io.grid import plane
from medad_serve.io.groups import group_items
from medad_serve.io.layout import Layout
from medad_serve.io.lut import Lut, read_lut
from medad_serve.io.pixels import Axes, Facts, Triple
from medad_serve.io.tags import code, codes, holds, numbers, series_digest
from medad_serve.spec import Window

Notes = tuple[str, ...]
_LOCALIZERS = {"LOCALIZER", "SCOUT", "TOPOGRAM", "SCANOGRAM", "SURVIEW"}
"""From the third value of (0008,0008) Image Type on: the defined term (PS3.3 C.8.2.1.1.1) and what vendors write."""
_TERMS = """
ANN AR ASMT AU BDUS BI BMD CFM CR CT CTPROTOCOL DG DMS DOC DX ECG EEG EMG EOG EPS ES FID GM HC HD IO IOL IVOCT IVUS
KER KO LEN LS M3D MG MR NM OAM OCT OP OPM OPT OPTBSV OPTENF OPV OSS OT PA PLAN POS PR PT PX REG RESP RF RG RTDOSE
RTIMAGE RTINTENT RTPLAN RTRAD RTRECORD RTSEGANN RTSTRUCT RWV SEG SM SMR SR SRF STAIN TEXTUREMAP TG US VA XA
XAPROTOCOL XC AS CD CF CP CS DD DF DM DS EC FA FS LP MA MS OPR ST VF
"""
"""Defined terms of (0008,0060), and the retired ones from AS on (PS3.3 C.7.3.1.1.1)."""
_MODALITIES = frozenset(_TERMS.split())


def read_facts(ds: Dataset, layout: Layout, syntax: UID, stored_range: tuple[float, float], notes: Notes) -> Facts:
    """Collect the facts; an unreadable optional tag counts as absent."""
    position, normal, origins, axes = _planes(ds, layout.frames)
    windows = _windows(ds, layout.frames)
    voi, faults = _voi(ds, layout, windows)
    return Facts(
        modality=_modality(ds),
        body_part=code(ds, "BodyPartExamined"),
        localizer=not _LOCALIZERS.isdisjoint(codes(ds, "ImageType")[2:]),
        rescaled=_is_rescaled(ds, layout.frames),
        bits=None if layout.is_float else layout.bits_stored,
        photometric=layout.photometric,
        transfer_syntax=str(syntax),
        windows=windows,
        voi=voi,
        stored_range=stored_range,
        position=position,
        normal=normal,
        origins=origins,
        axes=axes,
        series=series_digest(ds),
        notes=(*notes, *faults),
    )


def _modality(ds: Dataset) -> str:
    """Return a defined term, ``OT`` (other) for what is none: answers tell the modality, and it could be any text."""
    modality = code(ds, "Modality")
    return modality if not modality or modality in _MODALITIES else "OT"


def _is_rescaled(ds: Dataset, frames: int) -> bool:
    source = _macro(ds, "PixelValueTransformationSequence", frames)
    return holds(source, "RescaleIntercept") or holds(source, "RescaleSlope") or holds(ds, "ModalityLUTSequence")


def spacing(ds: Dataset, frames: int) -> tuple[float, float] | None:
    """Return (between rows, between columns) in mm of Pixel Spacing, else of Imager Pixel Spacing.

    Imager Pixel Spacing (projection radiography) is that of the detector, not corrected for magnification.
    """
    for keyword in ("PixelSpacing", "ImagerPixelSpacing"):
        values = _optional(_macro(ds, "PixelMeasuresSequence", frames), keyword) or _optional(ds, keyword)
        if len(values) == 2 and all(math.isfinite(v) and v > 0 for v in values):
            return values[0], values[1]
    return None


def _windows(ds: Dataset, frames: int) -> tuple[tuple[float, float], ...]:
    """Pair centers with widths in file order; a width that is no width (PS3.3 C.11.2.1.2) is refused."""
    source = _macro(ds, "FrameVOILUTSequence", frames)
    pairs = tuple(zip(_optional(source, "WindowCenter"), _optional(source, "WindowWidth"), strict=False))
    if any(width <= 0 for _, width in pairs):
        raise InputError(422, "(0028,1051) Window Width must be greater than 0", "Correct or remove the window")
    return tuple((c, w) for c, w in pairs if math.isfinite(c) and math.isfinite(w))


def shared_spacing(ds: Dataset, frames: int) -> tuple[float, float] | None:
    """Return Pixel Spacing where it is one for all frames: of the grid that an affine describes."""
    if len(set(_each(ds, "PixelMeasuresSequence", frames, "PixelSpacing"))) > 1:
        return None
    return spacing(ds, frames)


def _voi(ds: Dataset, layout: Layout, windows: tuple[tuple[float, float], ...]) -> tuple[Lut | Window | None, Notes]:
    """Return what the file itself is shown by: its first VOI LUT, else its first window (PS3.3 C.11.2).

    Of frames that differ in it, that of the first holds for all. A table that cannot be read is noted: models
    with a window of their own do without it.
    """
    source = _macro(ds, "FrameVOILUTSequence", layout.frames)
    faults: Notes = ()
    try:
        lut = read_lut(source, "VOILUTSequence", layout, ds)
    except InputError as error:
        lut, faults = None, (f"{error.message} and was not used",)
    if lut is not None or not windows:
        return lut, faults
    center, width = windows[0]
    function = code(source, "VOILUTFunction")
    if function == "SIGMOID":
        return Window(center=center, width=width, function="SIGMOID"), faults
    exact = function == "LINEAR_EXACT" or width < 1  # LINEAR has no width below 1
    return Window(center=center, width=width, function="LINEAR_EXACT" if exact else "LINEAR"), faults


def _planes(ds: Dataset, frames: int) -> tuple[float | None, Triple | None, tuple[Triple, ...], Axes | None]:
    """Return ``position``, ``normal``, ``origins`` and ``axes`` of ``Facts`` (PS3.3 C.7.6.2.1.1)."""
    places = _each(ds, "PlanePositionSequence", frames, "ImagePositionPatient")
    directions = _each(ds, "PlaneOrientationSequence", frames, "ImageOrientationPatient")
    origins = [(v[0], v[1], v[2]) for v in places if len(v) == 3 and all(map(math.isfinite, v))]
    axes = [(v[0], v[1], v[2], v[3], v[4], v[5]) for v in directions if len(v) == 6 and all(map(math.isfinite, v))]
    if not origins or not axes or len(places[0]) != 3 or len(directions[0]) != 6:
        return None, None, (), None
    position, normal = plane(origins[0], axes[0])
    one = len(axes) == len(directions) and all(_close(other, axes[0]) for other in axes)
    whole = len(origins) == frames and normal is not None
    return position, normal, tuple(origins) if whole else (), axes[0] if one and normal is not None else None


def _close(one: Axes, other: Axes) -> bool:
    return all(abs(a - b) < 1e-4 for a, b in zip(one, other, strict=True))


def _each(ds: Dataset, macro: str, frames: int, keyword: str) -> list[tuple[float, ...]]:
    """Return an element of every item of a functional group, or that of the image itself where there is none."""
    try:
        items = group_items(ds, macro, frames)
    except InputError:
        items = []
    return [_optional(item, keyword) for item in items or [ds]]


def _macro(ds: Dataset, macro: str, frames: int) -> Dataset:
    try:
        return next(iter(group_items(ds, macro, frames)), ds)
    except InputError:
        return ds


def _optional(ds: Dataset, keyword: str) -> tuple[float, ...]:
    try:
        return numbers(ds, keyword)
    except InputError:
        return ()
