"""A chest film as a file: PNG, JPEG, and DICOM in the ways that scanners of several makes store and show it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    generate_uid,
)

from medad_serve.data.phantoms.chest_film import CURVES, Curve, CurveKind
from medad_serve.data.phantoms.drawing import Floats

_QUALITY = [cv2.IMWRITE_JPEG_QUALITY, 93]
_STORED = (-0.15, 2.25)
"""Attenuation that the smallest and the largest stored value stand for."""
_LUT_BITS = 12


@dataclass(frozen=True)
class Storage:
    """One way to store a film."""

    suffix: Literal[".png", ".jpeg", ".dcm"]
    modality: Literal["", "CR", "DX"] = ""
    bits: int = 8
    inverted: bool = False
    """MONOCHROME1: the smallest value is white."""
    voi: CurveKind | None = None
    """What the file says of how it is shown; without it, it is stored as it is shown."""

    def curve(self, rng: np.random.Generator) -> Curve:
        """Draw how a film stored in this way is shown."""
        return Curve.draw(rng, self.voi or CURVES[rng.integers(len(CURVES))])


STORAGES = (
    Storage(".jpeg"),
    Storage(".dcm", "DX", 12, voi="LUT"),
    Storage(".png"),
    Storage(".dcm", "CR", 12, inverted=True, voi="LINEAR"),
    Storage(".jpeg"),
    Storage(".dcm", "DX", 16, voi="SIGMOID"),
    Storage(".png"),
    Storage(".dcm", "CR", 10),
    Storage(".jpeg"),
    Storage(".dcm", "DX", 14, inverted=True, voi="LUT"),
    Storage(".png"),
    Storage(".dcm", "CR", 14, voi="LINEAR"),
    Storage(".jpeg"),
    Storage(".dcm", "DX", 12, inverted=True, voi="SIGMOID"),
    Storage(".png"),
    Storage(".dcm", "CR", 12, inverted=True),
)
"""Dealt in turn, so that as many healthy as abnormal films are stored in each way: half of all are DICOM."""


@dataclass(frozen=True)
class Film:
    """A film to store: attenuation ``(H, W)``, the curve that shows it, and whose it is."""

    level: Floats
    curve: Curve
    patient: str
    index: int
    spacing_mm: float


def save_film(path: Path, film: Film, storage: Storage, seed: int) -> None:
    """Write a film; identifiers follow the seed, nobody is named."""
    if storage.suffix == ".dcm":
        _save_dicom(path, film, storage, seed)
        return
    shown = np.rint(255 * film.curve.show(film.level)).astype(np.uint8)
    options = _QUALITY if storage.suffix == ".jpeg" else []
    path.write_bytes(cv2.imencode(storage.suffix, shown, options)[1].tobytes())


def _save_dicom(path: Path, film: Film, storage: Storage, seed: int) -> None:
    study = [str(seed), film.patient]
    instance = UID(generate_uid(entropy_srcs=[*study, "film", str(film.index)]))
    sop = ComputedRadiographyImageStorage if storage.modality == "CR" else DigitalXRayImageStorageForPresentation
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop
    meta.MediaStorageSOPInstanceUID = instance
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    facts = {**_identity(film, storage), **_shown_by(film.curve, storage)}
    for keyword, value in {"SOPClassUID": sop, "SOPInstanceUID": instance, **facts}.items():
        setattr(dataset, keyword, value)
    dataset.StudyInstanceUID = generate_uid(entropy_srcs=[*study, "study"])
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=[*study, "series"])
    stored = _stored(film, storage)
    dataset.Rows, dataset.Columns = stored.shape
    dataset.add_new(0x7FE00010, "OW", stored.tobytes())
    dataset.save_as(path, enforce_file_format=True)


def _identity(film: Film, storage: Storage) -> dict[str, Any]:
    """Return what a film says of itself besides its pixels and how they are shown."""
    inverse = {"PresentationLUTShape": "INVERSE" if storage.inverted else "IDENTITY"}
    return {
        "ImageType": ["ORIGINAL", "PRIMARY"],
        "StudyDate": "",
        "StudyTime": "",
        "AccessionNumber": "",
        "Modality": storage.modality,
        "Manufacturer": "medad-serve phantom",
        "ReferringPhysicianName": "",
        "PatientName": film.patient,
        "PatientID": film.patient,
        "PatientBirthDate": "",
        "PatientSex": "",
        "BodyPartExamined": "CHEST",
        "ViewPosition": "PA",
        "StudyID": "",
        "SeriesNumber": 1,
        "InstanceNumber": film.index + 1,
        "PatientOrientation": ["L", "F"],
        "ImagerPixelSpacing": [round(film.spacing_mm, 4)] * 2,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME1" if storage.inverted else "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": storage.bits,
        "HighBit": storage.bits - 1,
        "PixelRepresentation": 0,
        **(inverse if storage.modality == "DX" else {}),
        "RescaleIntercept": 0,
        "RescaleSlope": 1,
        "RescaleType": "US",
    }


def _largest(storage: Storage) -> int:
    return int(2**storage.bits - 1)


def _stored(film: Film, storage: Storage) -> npt.NDArray[np.uint16]:
    """Return pixel values: proportional to attenuation where a VOI goes with them, else to brightness."""
    if storage.voi:
        low, high = _STORED
        share = (film.level - low) / (high - low)
    else:
        share = film.curve.show(film.level)
    if storage.inverted:
        share = 1 - share
    return np.asarray(np.clip(np.rint(share * _largest(storage)), 0, _largest(storage)), "<u2")


def _shown_by(curve: Curve, storage: Storage) -> dict[str, Any]:
    """Return the window or the table that turns stored values into what is shown (PS3.3 C.11.2)."""
    if storage.voi is None:
        return {}
    low, high = _STORED
    scale = _largest(storage) / (high - low)
    center, width = (curve.center - low) * scale, curve.width * scale
    if storage.inverted:
        center = _largest(storage) - center
    if storage.voi == "LUT":
        return {"VOILUTSequence": [_table(curve, storage)]}
    if storage.voi == "SIGMOID":
        return {"WindowCenter": round(center, 2), "WindowWidth": round(width, 2), "VOILUTFunction": "SIGMOID"}
    # LINEAR takes half a value off the centre and one off the width.
    return {"WindowCenter": round(center + 0.5, 2), "WindowWidth": round(width + 1, 2)}


def _table(curve: Curve, storage: Storage) -> Dataset:
    """Return the curve as a VOI LUT over the stored values between which it rises; beyond them it is flat."""
    low, high = _STORED
    values = np.arange(2**storage.bits)
    share = values / _largest(storage)
    level = low + (high - low) * (1 - share if storage.inverted else share)
    shown = curve.show(level.astype(np.float32))
    if storage.inverted:
        shown = 1 - shown
    output = np.rint(shown * (2**_LUT_BITS - 1)).astype("<u2")
    first, last = np.searchsorted(output, [1, output[-1]])
    used = output[first - 1 : last + 1] if first else output[: last + 1]
    table = Dataset()
    table.LUTDescriptor = [len(used), int(values[max(first - 1, 0)]), _LUT_BITS]
    table.LUTExplanation = "CHEST"
    table.add_new(0x00283006, "OW", used.tobytes())
    return table
