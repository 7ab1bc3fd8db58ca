"""CT images as DICOM files: the ways of storing that a reader meets, with identifiers that follow the seed."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, RLELossless, generate_uid

INTERCEPT = -1024
PADDING = -2000
"""Stored value outside the circle that signed images reconstruct, as GE writes it."""
SPACING_BETWEEN_SLICES_MM = 5.0


@dataclass(frozen=True)
class Encoding:
    """How a patient's pixels are stored."""

    signed: bool
    """Signed 16 bit with padding, else unsigned 12 bit without."""
    rle: bool
    """RLE Lossless, else uncompressed."""

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Encoding:
        """Draw a patient's encoding: half are signed, one in five is compressed."""
        return cls(signed=bool(rng.random() < 0.5), rle=bool(rng.random() < 0.2))


def save_ct(
    path: Path,
    values: npt.NDArray[np.float32],
    *,
    patient: str,
    index: int,
    spacing_mm: float,
    encoding: Encoding,
    seed: int,
) -> None:
    """Write a slice of HU ``values`` (square) as CT Image Storage; ``index`` counts the series' slices."""
    study = [str(seed), patient]
    instance = UID(generate_uid(entropy_srcs=[*study, "instance", str(index)]))
    syntax = RLELossless if encoding.rle else ExplicitVRLittleEndian
    dataset = FileDataset(str(path), {}, file_meta=_file_meta(instance, syntax), preamble=b"\0" * 128)
    for keyword, value in _identity(patient, index, spacing_mm, values.shape[0]).items():
        setattr(dataset, keyword, value)
    dataset.SOPInstanceUID = instance
    dataset.StudyInstanceUID = generate_uid(entropy_srcs=[*study, "study"])
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=[*study, "series"])
    dataset.FrameOfReferenceUID = generate_uid(entropy_srcs=[*study, "frame"])
    stored = _stored(values, encoding.signed)
    dataset.Rows, dataset.Columns = stored.shape
    dataset.BitsAllocated = 16
    dataset.BitsStored, dataset.HighBit = (16, 15) if encoding.signed else (12, 11)
    dataset.PixelRepresentation = int(encoding.signed)
    if encoding.signed:
        dataset.PixelPaddingValue = PADDING
    dataset.add_new(0x7FE00010, "OB" if encoding.rle else "OW", _rle(stored) if encoding.rle else stored.tobytes())
    dataset["PixelData"].is_undefined_length = encoding.rle
    dataset.save_as(path, enforce_file_format=True)


def _file_meta(instance: UID, syntax: UID) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = instance
    meta.TransferSyntaxUID = syntax
    return meta


def _identity(patient: str, index: int, spacing_mm: float, size: int) -> dict[str, Any]:
    """Return what a head CT says of itself besides its pixels."""
    corner = round(-spacing_mm * (size - 1) / 2, 4)
    return {
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "SOPClassUID": CTImageStorage,
        "StudyDate": "",
        "StudyTime": "",
        "AccessionNumber": "",
        "Modality": "CT",
        "Manufacturer": "medad-serve phantom",
        "ReferringPhysicianName": "",
        "SeriesDescription": "CT Plain",
        "PatientName": patient,
        "PatientID": patient,
        "PatientBirthDate": "",
        "PatientSex": "",
        "BodyPartExamined": "HEAD",
        "SliceThickness": SPACING_BETWEEN_SLICES_MM,
        "KVP": 120,
        "PatientPosition": "HFS",
        "StudyID": "",
        "SeriesNumber": 1,
        "AcquisitionNumber": 1,
        "InstanceNumber": index + 1,
        "ImagePositionPatient": [corner, corner, index * SPACING_BETWEEN_SLICES_MM],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PositionReferenceIndicator": "",
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "PixelSpacing": [spacing_mm, spacing_mm],
        "WindowCenter": 40,
        "WindowWidth": 80,
        "RescaleIntercept": INTERCEPT,
        "RescaleSlope": 1,
        "RescaleType": "HU",
    }


def _stored(values: npt.NDArray[np.float32], signed: bool) -> npt.NDArray[np.integer[Any]]:
    stored = np.rint(values - INTERCEPT)
    if not signed:
        return np.clip(stored, 0, 4095).astype("<u2")
    return np.where(_outside_circle(values.shape[0]), PADDING, stored).astype("<i2")


@lru_cache(maxsize=2)
def _outside_circle(size: int) -> npt.NDArray[np.bool_]:
    across = np.arange(size) - (size - 1) / 2
    return np.asarray(np.hypot(across[:, None], across[None, :]) > size / 2)


def _rle(stored: npt.NDArray[np.integer[Any]]) -> bytes:
    """Return one encapsulated frame of RLE Lossless (PS3.5 annex G): high bytes, then low bytes, row by row."""
    planes = stored.view(np.uint8).reshape(*stored.shape, 2)
    segments = [imagecodecs.packbits_encode(np.ascontiguousarray(planes[..., p]), axis=-1) for p in (1, 0)]
    segments = [s + b"\0" * (len(s) % 2) for s in segments]
    header = struct.pack("<16I", 2, 64, 64 + len(segments[0]), *[0] * 13)
    return encapsulate([header + b"".join(segments)])
