"""Synthetic slices in every encoding that is read: what the benchmark of decoding decodes."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from typing import Any

import cv2
import imagecodecs
import nibabel
import numpy as np
from numpy.typing import NDArray
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate

from medad_serve.data.phantoms.head_anatomy import Head, head_ct_slice

Stored = NDArray[Any]
Encoder = Callable[[Stored, int], bytes]
SIZES = (256, 512, 1024)
DEPTH = 32
"""Slices of a volume."""
INTERCEPT = -1024
PADDING, SIGNED = -2000, 16
"""As several scanners write CT: 16 bits with a sign, beyond the circle that they reconstruct a value of no tissue."""
PLAIN = (8, 12, SIGNED)


@dataclass(frozen=True)
class Encoded:
    """One file, and what it holds."""

    encoding: str
    size: int
    bits: int
    data: bytes
    stored: Stored
    frame: bytes = b""
    """The compressed frame of a DICOM file."""


@dataclass(frozen=True)
class Syntax:
    """How a transfer syntax is written, and what reads it beside the product's own decoder."""

    name: str
    uid: uid.UID
    bits: tuple[int, ...] = (8, 12)
    encode: Encoder | None = None
    """One frame of values of so many bits; None where pydicom writes the file itself."""
    plugin: str = ""
    """Pydicom's decoder plugin for it: of the dev extra, but for RLE."""


def _jpeg(stored: Stored, bits: int) -> bytes:
    return bytes(imagecodecs.jpeg8_encode(stored, level=95, bitspersample=bits))


def _jpeg_lossless(stored: Stored, bits: int) -> bytes:
    return bytes(imagecodecs.ljpeg_encode(stored, bitspersample=bits))


def _jpeg_ls(stored: Stored, bits: int) -> bytes:
    return bytes(imagecodecs.jpegls_encode(stored))


def _jpeg_2000(stored: Stored, bits: int) -> bytes:
    return bytes(imagecodecs.jpeg2k_encode(stored, level=0, codecformat="j2k", reversible=True, bitspersample=bits))


def _htj2k(stored: Stored, bits: int) -> bytes:
    return bytes(imagecodecs.htj2k_encode(stored, reversible=True))


SYNTAXES = (
    Syntax("explicit little endian", uid.ExplicitVRLittleEndian, PLAIN),
    Syntax("implicit little endian", uid.ImplicitVRLittleEndian, PLAIN),
    Syntax("explicit big endian", uid.ExplicitVRBigEndian, PLAIN),
    Syntax("deflated", uid.DeflatedExplicitVRLittleEndian),
    Syntax("RLE", uid.RLELossless, plugin="pydicom"),
    Syntax("JPEG baseline", uid.JPEGBaseline8Bit, (8,), _jpeg, "pylibjpeg"),
    Syntax("JPEG extended", uid.JPEGExtended12Bit, (12,), _jpeg, "pylibjpeg"),
    Syntax("JPEG lossless", uid.JPEGLosslessSV1, (8, 12), _jpeg_lossless, "pylibjpeg"),
    Syntax("JPEG-LS", uid.JPEGLSLossless, (8, 12), _jpeg_ls, "pyjpegls"),
    Syntax("JPEG 2000", uid.JPEG2000Lossless, (8, 12), _jpeg_2000, "pylibjpeg"),
    Syntax("HTJ2K", uid.HTJ2KLossless, (8, 12), _htj2k, "pylibjpeg"),
)


@cache
def head(size: int) -> NDArray[np.float32]:
    """Return a phantom head in HU ``(size, size)``: its middle, or several side by side, at the noise it has."""
    rng = np.random.default_rng(0)
    values, _ = head_ct_slice(rng, Head.draw(rng))
    side = len(values)
    if size < side:
        start = (side - size) // 2
        return np.ascontiguousarray(values[start : start + size, start : start + size])
    times = -(-size // side)
    return np.tile(values, (times, times))[:size, :size]


def stored_values(size: int, bits: int) -> tuple[Stored, int]:
    """Return a head as values of 8 or 12 bits, or 16 with a sign, and the slope that makes them HU again."""
    if bits == SIGNED:
        place = np.arange(size) - (size - 1) / 2
        within = np.hypot(place[:, None], place) <= size / 2
        return np.where(within, np.rint(head(size) - INTERCEPT), PADDING).astype(np.int16), 1
    slope = 2 ** (12 - bits)
    kind = np.uint8 if bits == 8 else np.uint16
    return np.clip(np.rint((head(size) - INTERCEPT) / slope), 0, 2**bits - 1).astype(kind), slope


def encoded_dicom(syntax: Syntax, size: int, bits: int) -> Encoded:
    """Return a CT slice in a transfer syntax."""
    stored, slope = stored_values(size, bits)
    ds = _dataset(stored, bits, slope)
    ds.file_meta.TransferSyntaxUID = syntax.uid
    frame = syntax.encode(stored, bits) if syntax.encode else b""
    if frame:
        ds.add_new("PixelData", "OB", encapsulate([frame]))
        ds["PixelData"].is_undefined_length = True
    elif syntax.uid == uid.RLELossless:
        ds.compress(uid.RLELossless, stored, encoding_plugin="pydicom")
    else:
        packed = (stored if syntax.uid.is_little_endian else stored.byteswap()).tobytes()
        ds.add_new("PixelData", "OB" if bits == 8 and not syntax.uid.is_implicit_VR else "OW", packed)
    buffer = BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return Encoded(syntax.name, size, bits, buffer.getvalue(), stored, frame)


def _dataset(stored: Stored, bits: int, slope: int) -> Dataset:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = uid.CTImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = uid.UID("1.2.826.0.1.3680043.8.498.1.1")
    ds.SeriesInstanceUID = "1.2.826.0.1.3680043.8.498.1"
    ds.Modality, ds.BodyPartExamined, ds.ImageType = "CT", "HEAD", ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.PatientName = ds.PatientID = "phantom"
    ds.ImagePositionPatient, ds.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
    ds.PixelSpacing = [0.45, 0.45]
    ds.Rows, ds.Columns = stored.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", int(bits == SIGNED)
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = stored.dtype.itemsize * 8, bits, bits - 1
    ds.RescaleSlope, ds.RescaleIntercept = slope, INTERCEPT
    ds.WindowCenter, ds.WindowWidth = 40, 80
    if bits == SIGNED:
        ds.add_new("PixelPaddingValue", "SS", PADDING)
    return ds


def encoded_files(size: int) -> Iterator[Encoded]:
    """Yield what is no DICOM: pictures of ``size``, and volumes of ``DEPTH`` slices of a quarter of it."""
    eight, twelve = stored_values(size, 8)[0], stored_values(size, 12)[0]
    yield Encoded("PNG", size, 8, _picture(".png", eight), eight)
    yield Encoded("PNG", size, 16, _picture(".png", twelve), twelve)
    yield Encoded("JPEG", size, 8, _picture(".jpg", eight), eight)
    buffer = BytesIO()
    np.save(buffer, twelve)
    yield Encoded(".npy", size, 16, buffer.getvalue(), twelve)
    side = max(size // 4, 1)
    volume = np.stack([np.roll(stored_values(side, 12)[0], shift, axis=1) for shift in range(DEPTH)])
    # the axes of a scan lying on its back: what is read is a view of the file, turned to slices, rows, columns
    image = nibabel.Nifti1Image(volume.transpose(2, 1, 0), np.diag([-1.0, -1.0, 2.0, 1.0]))
    plain = bytes(image.to_bytes())
    yield Encoded(".nii", side, 16, plain, volume)
    yield Encoded(".nii.gz", side, 16, gzip.compress(plain, 6), volume)


def _picture(ending: str, stored: Stored) -> bytes:
    _, data = cv2.imencode(ending, stored)
    return bytes(data)
