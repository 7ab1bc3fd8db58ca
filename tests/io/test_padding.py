from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medad_serve.io import decode

SYNTAXES = [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian]


@pytest.fixture
def ring(slice_16: Any) -> Any:
    """A slice whose corner holds -2000, as CT scanners fill outside the field of view."""
    array = slice_16.copy()
    array[:5, :5] = -2000
    return array


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda s: s.name)
def test_padding_value_is_masked_before_rescale(make_dicom: Any, ring: Any, syntax: Any) -> None:
    pixels = decode(make_dicom(ring, syntax, PixelPaddingValue=-2000, RescaleSlope=1, RescaleIntercept=-24))
    np.testing.assert_array_equal(pixels.padding[0], ring == -2000)


def test_signed_padding_written_as_unsigned_is_understood(make_dicom: Any, ring: Any) -> None:
    data = make_dicom(ring, PixelPaddingValue=-2000)
    signed = b"\x28\x00\x20\x01SS\x02\x00" + struct.pack("<h", -2000)
    assert data.count(signed) == 1
    data = data.replace(signed, b"\x28\x00\x20\x01US\x02\x00" + struct.pack("<H", 63536))
    np.testing.assert_array_equal(decode(data).padding[0], ring == -2000)


@pytest.mark.parametrize("ends", [(-2000, -990), (-990, -2000)])
def test_padding_range_includes_both_ends_in_either_order(make_dicom: Any, ring: Any, ends: Any) -> None:
    pixels = decode(make_dicom(ring, PixelPaddingValue=ends[0], PixelPaddingRangeLimit=ends[1]))
    np.testing.assert_array_equal(pixels.padding[0], (ring >= -2000) & (ring <= -990))


def test_unsigned_padding_range(make_dicom: Any) -> None:
    array = np.array([[0, 1, 4094, 4095, 60000, 65535]], np.uint16)
    pixels = decode(make_dicom(array, PixelPaddingValue=65535, PixelPaddingRangeLimit=60000))
    np.testing.assert_array_equal(pixels.padding[0], array >= 60000)


def test_no_padded_pixel_means_no_mask(make_dicom: Any, slice_16: Any) -> None:
    assert decode(make_dicom(slice_16)).padding is None
    assert decode(make_dicom(slice_16, PixelPaddingValue=-2000)).padding is None


def test_padding_beyond_bits_stored_never_marks_a_measured_value(make_dicom: Any) -> None:
    # 65535 cut to 12 bits is 4095, the value of saturated bone
    array = np.array([[0xFFFF, 0x0FFF, 100]], np.uint16)
    pixels = decode(make_dicom(array, BitsStored=12, PixelPaddingValue=0xFFFF))
    np.testing.assert_array_equal(pixels.padding[0], [[True, False, False]])


def test_padding_of_a_signed_12_bit_image_with_open_high_bits(make_dicom: Any) -> None:
    array = np.array([[0x0830, 0xF830, 100]], "<u2").view("<i2")
    pixels = decode(make_dicom(array, BitsStored=12, PixelPaddingValue=-2000))
    np.testing.assert_array_equal(pixels.padding[0], [[True, True, False]])
