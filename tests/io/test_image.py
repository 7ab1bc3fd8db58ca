from __future__ import annotations

import struct
import zlib
from typing import Any

import cv2
import numpy as np
import pytest

from medad_serve.errors import InputError
from medad_serve.io import Limits, decode


def encode(array: Any, kind: str = ".png") -> bytes:
    return bytes(cv2.imencode(kind, array)[1].tobytes())


@pytest.fixture
def grey8() -> Any:
    return np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)


def test_8_bit_png_keeps_every_value(grey8: Any) -> None:
    pixels = decode(encode(grey8))
    np.testing.assert_array_equal(pixels.array, grey8[np.newaxis])
    assert pixels.kind == "image"
    assert pixels.facts.stored_range == (0, 255)


def test_16_bit_png_keeps_every_value(grey8: Any) -> None:
    array = grey8.astype(np.uint16) * 257
    pixels = decode(encode(array))
    np.testing.assert_array_equal(pixels.array[0], array)
    assert pixels.facts.stored_range == (0, 65535)


def test_jpeg_is_close(grey8: Any) -> None:
    smooth = cv2.GaussianBlur(grey8, (0, 0), 3)
    pixels = decode(encode(smooth, ".jpg"))
    assert np.abs(pixels.array[0] - smooth).max() <= 6


def test_colour_is_rgb() -> None:
    bgr = np.zeros((4, 5, 3), np.uint8)
    bgr[..., 2] = 200
    pixels = decode(encode(bgr))
    assert pixels.is_color
    np.testing.assert_array_equal(pixels.array[0, 0, 0], [200, 0, 0])


@pytest.mark.parametrize("channels", [3, 4])
def test_equal_channels_are_grey_and_alpha_is_dropped(grey8: Any, channels: int) -> None:
    array = np.repeat(grey8[..., np.newaxis], channels, axis=2)
    if channels == 4:
        array[..., 3] = 7
    np.testing.assert_array_equal(decode(encode(array)).array[0], grey8)


def test_exif_orientation_does_not_move_pixels() -> None:
    array = np.zeros((16, 32), np.uint8)
    array[:, 16:] = 255
    jpeg = encode(array, ".jpg")
    exif = b"Exif\0\0MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)  # 6: turn by 90 degrees
    turned = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]
    assert cv2.imdecode(np.frombuffer(turned, np.uint8), cv2.IMREAD_GRAYSCALE).shape == (32, 16)
    np.testing.assert_array_equal(decode(turned).array, decode(jpeg).array)


@pytest.mark.parametrize("kind", [".png", ".jpg"])
@pytest.mark.parametrize("keep", [0.2, 0.6, 0.99])
def test_truncated_image_is_400(grey8: Any, kind: str, keep: float) -> None:
    data = encode(grey8, kind)
    with pytest.raises(InputError) as error:
        decode(data[: int(len(data) * keep)])
    assert error.value.code == 400


def test_huge_png_header_is_refused_before_decoding() -> None:
    header = b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    with pytest.raises(InputError) as error:
        decode(data + b"\0" * 64)
    assert error.value.code == 413


@pytest.mark.parametrize("kind", [".png", ".jpg"])
def test_image_over_the_limits_is_413(grey8: Any, kind: str) -> None:
    with pytest.raises(InputError) as error:
        decode(encode(grey8, kind), Limits(max_pixels=20 * 30 - 1))
    assert error.value.code == 413
    assert decode(encode(grey8, kind), Limits(max_pixels=20 * 30)).frames == 1
