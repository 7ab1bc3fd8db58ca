from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

SECRET = "ZEBRA^QUAGGA"
SERIES = "1.2.826.0.1.3680043.8.498.1"

MakeDicom = Callable[..., bytes]


def as_bytes(ds: Dataset) -> bytes:
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def build(array: NDArray[Any], syntax: UID = ExplicitVRLittleEndian, **tags: Any) -> Dataset:
    """A CT slice (H, W), stack (F, H, W) or colour (H, W, 3) image; ``tags`` overrides, None removes."""
    color = array.ndim == 3 and array.shape[-1] == 3
    frames = array.shape[0] if array.ndim == 3 and not color else 1
    bits = array.dtype.itemsize * 8
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = CTImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = SERIES + ".7"
    ds.PatientName, ds.PatientID, ds.InstitutionName = SECRET, SECRET, SECRET
    ds.Modality, ds.BodyPartExamined, ds.SeriesInstanceUID = "CT", "HEAD", SERIES
    rows = array.shape[0 if color else -2]
    ds.Rows, ds.Columns, ds.SamplesPerPixel = rows, array.shape[1 if color else -1], 3 if color else 1
    ds.PhotometricInterpretation = "RGB" if color else "MONOCHROME2"
    if color:
        ds.PlanarConfiguration = 0
    if frames > 1:
        ds.NumberOfFrames = frames
    ds.BitsAllocated = ds.BitsStored = bits
    ds.HighBit, ds.PixelRepresentation = bits - 1, int(array.dtype.kind == "i")
    for keyword, value in tags.items():
        if keyword != "PixelData":
            setattr(ds, keyword, value)
    if tags.get("BitsStored") and "HighBit" not in tags:
        ds.HighBit = ds.BitsStored - 1
    order = "<" if syntax.is_little_endian else ">"
    ds.PixelData = tags.get("PixelData", array.astype(array.dtype.newbyteorder(order)).tobytes())
    if len(ds.PixelData) % 2:
        ds.PixelData += b"\0"
    ds["PixelData"].VR = "OB" if bits == 8 and not syntax.is_implicit_VR else "OW"
    for keyword in [k for k, value in tags.items() if value is None]:
        delattr(ds, keyword)
    return ds


@pytest.fixture(scope="session")
def build_dataset() -> Callable[..., Dataset]:
    return build


@pytest.fixture(scope="session")
def to_bytes() -> Callable[[Dataset], bytes]:
    return as_bytes


@pytest.fixture(scope="session")
def make_dicom() -> MakeDicom:
    """Build a DICOM file in memory: ``make_dicom(array, syntax=..., **tags)``."""
    return lambda array, syntax=ExplicitVRLittleEndian, **tags: as_bytes(build(array, syntax, **tags))


@pytest.fixture(scope="session")
def make_compressed() -> MakeDicom:
    """``make_compressed(array, syntax, frames, **tags)`` wraps encoded frames."""

    def make(array: NDArray[Any], syntax: UID, frames: list[bytes], **tags: Any) -> bytes:
        ds = build(array, syntax, **tags)
        ds.PixelData = encapsulate(frames)
        ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
        return as_bytes(ds)

    return make


@pytest.fixture(scope="session")
def make_zip() -> Callable[..., bytes]:
    def make(members: Iterable[bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", method) as archive:
            for index, member in enumerate(members):
                archive.writestr(f"{SECRET}/{index}.dcm", member)
        return buffer.getvalue()

    return make


@pytest.fixture(scope="session")
def slice_16() -> NDArray[np.int16]:
    """A CT slice of stored values -1000..1999 with texture, 40 x 48."""
    return np.random.default_rng(0).integers(-1000, 2000, (40, 48)).astype(np.int16)


@pytest.fixture(scope="session")
def slice_12(slice_16: NDArray[np.int16]) -> NDArray[np.uint16]:
    """The same as unsigned 12-bit values, smoothed so that lossy codecs stay close."""
    rows, columns = np.mgrid[0:40, 0:48]
    return (2000 + 900 * np.sin(rows / 9) * np.cos(columns / 11)).astype(np.uint16)


@pytest.fixture(scope="session")
def secret() -> str:
    """Text that stands in the name tags of every built file."""
    return SECRET


@pytest.fixture(scope="session")
def corpus() -> list[Path]:
    """Every file that ships in the pydicom wheel as test data."""
    root = Path(pydicom.__file__).parent / "data" / "test_files"
    return sorted(path for path in root.rglob("*") if path.is_file())


@pytest.fixture(scope="session")
def make_nifti() -> Callable[..., bytes]:
    """``make_nifti(array, affine, kind=nibabel.Nifti1Image, **header fields)``: bytes of a .nii that names a person."""

    def make(array: NDArray[Any], affine: Any, kind: Any = nibabel.Nifti1Image, **fields: Any) -> bytes:
        image = kind(array, affine, dtype=array.dtype)
        image.header["descrip"] = SECRET
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", SECRET.encode()))
        data = bytes(image.to_bytes())
        header = kind.header_class(data[: kind.header_class.sizeof_hdr], check=False)
        for field, value in fields.items():  # after saving, which corrects what it can
            header[field] = value
        return header.binaryblock + data[len(header.binaryblock) :]

    return make
