"""However a file stores and shows its values, the picture is pydicom's: every way crossed with every other."""

from __future__ import annotations

from io import BytesIO
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import apply_modality_lut, apply_rescale, apply_voi_lut, apply_windowing
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medad_serve.errors import InputError
from medad_serve.io import decode
from medad_serve.models import family
from medad_serve.prep import check_input, display

SYNTAXES = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian)
RESCALES = {"none": None, "ct": (1, -1024), "sloped": (2.5, 7)}
VOIS = ("none", "linear", "exact", "sigmoid", "table")


def stored(bits: int, signed: bool, allocated: int) -> NDArray[np.generic]:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    kind = f"{'i' if signed else 'u'}{allocated // 8}"
    return np.linspace(low, high, 30 * 40).round().reshape(30, 40).astype(kind)


def dataset(
    values: NDArray[np.generic], bits: int, photometric: str, rescale: tuple[float, float] | None, voi: str
) -> Dataset:
    ds = Dataset()
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, photometric
    ds.Rows, ds.Columns = values.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = values.dtype.itemsize * 8, bits, bits - 1
    ds.PixelRepresentation = int(values.dtype.kind == "i")
    if rescale is not None:
        ds.RescaleSlope, ds.RescaleIntercept = rescale
    middle, width = float(np.median(apply_rescale(values, ds))), 2.0**bits / 3
    if voi == "table":
        item = Dataset()
        curve = (np.linspace(0, 1, 200) ** 0.5 * 1023).round()
        item.add_new("LUTDescriptor", "SS" if ds.PixelRepresentation else "US", [200, int(values.max()) // 2, 10])
        item.add_new("LUTData", "US", curve.astype(int).tolist())
        ds.VOILUTSequence = Sequence([item])
    elif voi != "none":
        ds.WindowCenter, ds.WindowWidth = round(middle), round(width)
        ds.VOILUTFunction = {"linear": "LINEAR", "exact": "LINEAR_EXACT", "sigmoid": "SIGMOID"}[voi]
    return ds


def encoded(ds: Dataset, values: NDArray[np.generic], syntax: str) -> bytes:
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, "1.2.3"
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    ds.add_new("PixelData", "OB" if values.dtype.itemsize == 1 and syntax != ImplicitVRLittleEndian else "OW", data)
    buffer = BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def oracle(ds: Dataset, values: NDArray[np.generic]) -> NDArray[np.float64]:
    """The picture on 0..1 by pydicom: rescale, VOI, polarity, padding black."""
    measured = apply_modality_lut(values, ds)
    low, high = (
        2.0 ** (ds.BitsStored - 1) * -ds.PixelRepresentation,
        2.0 ** (ds.BitsStored - ds.PixelRepresentation) - 1,
    )
    slope, intercept = (float(ds.get(k, d)) for k, d in (("RescaleSlope", 1), ("RescaleIntercept", 0)))
    low, high = low * slope + intercept, high * slope + intercept
    if "VOILUTSequence" in ds:
        first = ds.VOILUTSequence[0].LUTDescriptor[1]
        within = np.clip(np.rint(measured), first, first + 199)  # pydicom wraps what lies 65536 above
        shown = apply_voi_lut(within.astype(np.int64), ds) / 1023
    else:
        windowed = apply_windowing(measured, ds) if "WindowCenter" in ds else measured
        shown = (windowed - low) / (high - low)
    if ds.PhotometricInterpretation == "MONOCHROME1":
        shown = 1 - shown
    if "PixelPaddingValue" in ds:
        shown = np.where(values == ds.PixelPaddingValue, 0, shown)
    return np.asarray(shown, np.float64)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(
    ("bits", "signed", "allocated"), [(8, False, 8), (8, True, 8), (12, False, 16), (12, True, 16), (16, True, 16)]
)
def test_every_way_of_storing_is_shown_as_pydicom_does(
    photometric: str, bits: int, signed: bool, allocated: int
) -> None:
    values = stored(bits, signed, allocated)
    for number, (rescale, voi, padded) in enumerate(product(RESCALES.values(), VOIS, (False, True))):
        ds = dataset(values, bits, photometric, rescale, voi)
        if padded:
            ds.add_new("PixelPaddingValue", "SS" if signed else "US", int(values[7, 7]))
        shown = display(decode(encoded(ds, values, SYNTAXES[number % 3])), "file")[0]
        np.testing.assert_allclose(shown, oracle(ds, values), rtol=0, atol=3e-6, err_msg=f"{rescale} {voi} {padded}")


@pytest.mark.parametrize("planar", [0, 1])
@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL", "PALETTE COLOR"])
def test_colour_is_422_in_every_layout_and_grey_kept_as_colour_is_grey(photometric: str, planar: int) -> None:
    grey = np.arange(40 * 48, dtype=np.uint16).reshape(40, 48).astype(np.uint8)
    made = family("draem")
    for colored in (True, False):
        pixels = decode(_colour(grey, photometric, planar, colored))
        if colored:
            with pytest.raises(InputError, match="in colour") as error:
                check_input(pixels, made.input, made.prep)
            assert error.value.code == 422
        else:
            check_input(pixels, made.input, made.prep)
            assert np.array_equal(pixels.array[0], grey)


def _colour(grey: NDArray[np.uint8], photometric: str, planar: int, colored: bool) -> bytes:
    ds = Dataset()
    ds.Rows, ds.Columns = grey.shape
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit, ds.PixelRepresentation = 7, 0
    ds.PhotometricInterpretation, ds.SamplesPerPixel = photometric, 3
    values = np.stack([grey, grey, np.full_like(grey, 90) if colored else grey], axis=-1)
    if photometric == "YBR_FULL":  # grey: both chroma differences are 128
        values = np.stack([grey, np.full_like(grey, 128), np.full_like(grey, 200 if colored else 128)], axis=-1)
    if photometric == "PALETTE COLOR":
        ds.SamplesPerPixel, values = 1, grey
        ramp = np.arange(256, dtype=np.uint8)
        for name in ("Red", "Green", "Blue"):
            entries = ramp[::-1] if colored and name == "Blue" else ramp
            setattr(ds, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 8])
            setattr(ds, f"{name}PaletteColorLookupTableData", entries.tobytes())
    else:
        ds.PlanarConfiguration = planar
        values = np.moveaxis(values, -1, 0) if planar else values
    return encoded(ds, values, ExplicitVRLittleEndian)
