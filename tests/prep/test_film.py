"""Projection radiographs: shown by the file's own VOI, kept in ratio, standardized."""

from __future__ import annotations

from io import BytesIO

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.pixels import apply_voi_lut
from pydicom.sequence import Sequence
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

from medad_serve.errors import InputError
from medad_serve.io import Facts, Pixels, decode
from medad_serve.prep import check_input, display, prepare, window_of
from medad_serve.prep.geometry import covered
from medad_serve.spec import InputSpec, PrepSpec, Standardize, Window


def _film(bits: int = 12, photometric: str = "MONOCHROME2", *, signed: bool = False, shape=(60, 40)) -> FileDataset:
    """A DX image whose values span what its bits can hold."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["film"])
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.Modality, ds.SamplesPerPixel, ds.PhotometricInterpretation = "DX", 1, photometric
    ds.Rows, ds.Columns = shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, bits, bits - 1, int(signed)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    values = np.linspace(low, high, shape[0] * shape[1]).round().reshape(shape)
    ds.PixelData = values.astype("<i2" if signed else "<u2").tobytes()
    return ds


def _with_lut(ds: FileDataset, first: int, entries: np.ndarray, bits: int) -> FileDataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if ds.PixelRepresentation else "US", [len(entries) % 65536, first, bits])
    item.add_new("LUTData", "OW", entries.astype("<u2").tobytes())
    ds.VOILUTSequence = Sequence([item])
    return ds


def _decoded(ds: FileDataset) -> Pixels:
    file = BytesIO()
    ds.save_as(file)
    return decode(file.getvalue())


@pytest.mark.parametrize(
    ("ds", "first", "count", "bits"),
    [
        (_film(12), 0, 4096, 12),
        (_film(14), 1000, 4096, 16),
        (_film(12, signed=True), -500, 1000, 10),
        (_film(16), 0, 65536, 16),
    ],
    ids=["whole", "part", "signed", "65536"],
)
def test_a_voi_lut_equals_pydicom(ds: FileDataset, first: int, count: int, bits: int) -> None:
    curve = (np.linspace(0, 1, count) ** 0.5 * (2**bits - 1)).round()
    _with_lut(ds, first, curve, bits)
    expected = apply_voi_lut(ds.pixel_array, ds) / (2**bits - 1)
    assert display(_decoded(ds), "file")[0] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID", None])
def test_the_window_of_a_film_equals_pydicom(function: str | None) -> None:
    ds = _film(14)
    ds.WindowCenter, ds.WindowWidth = 6000, 5000
    if function:
        ds.VOILUTFunction = function
    expected = apply_voi_lut(ds.pixel_array, ds) / (2**14 - 1)
    assert display(_decoded(ds), "file")[0] == pytest.approx(expected, abs=1e-6)


def test_the_table_goes_before_the_window() -> None:
    ds = _with_lut(_film(12), 0, np.arange(4096)[::-1], 12)
    ds.WindowCenter, ds.WindowWidth = 100, 50
    expected = apply_voi_lut(ds.pixel_array, ds, prefer_lut=True) / 4095
    assert display(_decoded(ds), "file")[0] == pytest.approx(expected, abs=1e-6)


def test_a_film_without_voi_takes_the_range_of_its_stored_bits() -> None:
    pixels = _decoded(_film(12))
    assert window_of(pixels, "file") is None
    assert display(pixels, "file")[0] == pytest.approx(pixels.array[0] / 4095, abs=1e-6)


def test_monochrome1_is_turned_after_its_voi() -> None:
    ds = _film(12, "MONOCHROME1")
    ds.WindowCenter, ds.WindowWidth = 1500, 900
    plain = _film(12)
    plain.WindowCenter, plain.WindowWidth = 1500, 900
    assert display(_decoded(ds), "file") == pytest.approx(1 - display(_decoded(plain), "file"), abs=1e-6)


def test_a_damaged_table_is_noted_and_the_window_taken() -> None:
    ds = _with_lut(_film(12), 0, np.arange(100), 12)
    ds.VOILUTSequence[0].LUTDescriptor = [4096, 0, 12]  # more entries than there are
    ds.WindowCenter, ds.WindowWidth = 2000, 1000
    pixels = _decoded(ds)
    assert pixels.facts.notes == ("(0028,3010) VOI LUT Sequence cannot be read and was not used",)
    assert window_of(pixels, "file") == Window(center=2000, width=1000)


@pytest.mark.parametrize(("rows", "columns"), [(300, 200), (200, 300), (224, 224), (500, 224), (37, 401)])
def test_cover_is_short_side_then_centre_crop(rows: int, columns: int) -> None:
    image = cv2.GaussianBlur(np.random.default_rng(0).random((rows, columns), np.float32), (0, 0), 9)
    image = (image - image.min()) / np.ptp(image)
    made = prepare(Pixels(image[None], "array"), PrepSpec(size=(64, 64), fit="cover"))
    short = 64 / min(rows, columns)
    whole = cv2.resize(
        image, (max(64, round(columns * short)), max(64, round(rows * short))), None, 0, 0, cv2.INTER_AREA
    )
    top, left = (whole.shape[0] - 64) // 2, (whole.shape[1] - 64) // 2
    expected = whole[top : top + 64, left : left + 64]
    # The same middle up to half a pixel of rounding.
    assert np.abs(made.tensor[0, 0] - expected).mean() < 0.02
    assert np.corrcoef(made.tensor[0, 0].ravel(), expected.ravel())[0, 1] > 0.99


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 512), st.integers(1, 512))
def test_what_is_covered_lies_in_the_middle_and_has_the_ratio(rows: int, columns: int, high: int, wide: int) -> None:
    top, left, height, width = covered((5, 7, rows, columns), (high, wide))
    assert 0 <= top - 5 <= rows - height
    assert 0 <= left - 7 <= columns - width
    assert abs((rows - height) - 2 * (top - 5)) <= 1
    assert abs((columns - width) - 2 * (left - 7)) <= 1
    assert height == rows or width == columns
    scale = min(rows / high, columns / wide)
    assert height == pytest.approx(max(1, scale * high), abs=0.51)
    assert width == pytest.approx(max(1, scale * wide), abs=0.51)


def test_a_heatmap_of_a_covered_frame_goes_back_to_its_middle() -> None:
    made = prepare(Pixels(np.zeros((1, 100, 300), np.float32), "array"), PrepSpec(size=(50, 50), fit="cover"))
    there = made.geometries[0].to_source(np.ones((50, 50), np.float32))
    assert there.shape == (100, 300)
    assert there[:, 100:200].min() == 1
    assert there[:, :100].max() == there[:, 200:].max() == 0


def test_standardize_is_applied_last() -> None:
    image = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(1, 64, 64)
    spec = PrepSpec(size=(64, 64), standardize=Standardize(mean=0.449, std=0.226))
    made = prepare(Pixels(image, "array"), spec).tensor
    assert made[0, 0] == pytest.approx((image[0] - 0.449) / 0.226, abs=1e-5)
    assert spec.values == (pytest.approx(-0.449 / 0.226), pytest.approx(0.551 / 0.226))


def test_plain_images_pass_where_the_modality_is_asked_for() -> None:
    spec, prep = InputSpec(modalities=("CR", "DX"), plain_images=True), PrepSpec()
    image = np.zeros((1, 32, 32), np.float32)
    check_input(Pixels(image, "image"), spec, prep)
    check_input(Pixels(image, "dicom", facts=Facts(modality="DX")), spec, prep)
    with pytest.raises(InputError, match="reads CR or DX, this is a modality CT"):
        check_input(Pixels(image, "dicom", facts=Facts(modality="CT")), spec, prep)
    with pytest.raises(InputError, match="without a modality"):
        check_input(Pixels(image, "image"), spec.model_copy(update={"plain_images": False}), prep)
