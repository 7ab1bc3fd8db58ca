"""What hostile or broken input may cost, and what its errors may say."""

from __future__ import annotations

import gzip
import logging
import struct
import tracemalloc
import warnings
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import uid
from pydicom.pixels.encoders import RLELosslessEncoder

from medad_serve.errors import InputError, MedadError
from medad_serve.io import Limits, Pixels, decode

SMALL = Limits(max_bytes=32 * 2**20, max_values=8 * 2**20)


def refusal(data: bytes, limits: Limits = SMALL) -> InputError:
    with pytest.raises(InputError) as error:
        decode(data, limits)
    return error.value


def peak(data: bytes, limits: Limits = SMALL) -> tuple[InputError, int]:
    tracemalloc.start()
    try:
        return refusal(data, limits), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.RLELossless], ids=lambda s: s.name)
def test_absurd_dimensions_are_refused_before_allocating(
    make_compressed: Any, make_dicom: Any, slice_16: Any, syntax: Any
) -> None:
    tags = {"Rows": 65535, "Columns": 65535}
    make = make_compressed if syntax.is_encapsulated else make_dicom
    data = make(slice_16, syntax, [b"\0" * 64], **tags) if syntax.is_encapsulated else make(slice_16, syntax, **tags)
    error, used = peak(data, Limits())
    assert error.code == 413
    assert error.message.startswith("(0028,0010) Rows times (0028,0011) Columns is more than")
    assert used < 2**20


@pytest.mark.parametrize("frames", [5000, 2**31 - 1])
def test_absurd_frame_count_is_413(make_dicom: Any, slice_16: Any, frames: int) -> None:
    error, used = peak(make_dicom(slice_16, NumberOfFrames=frames))
    assert error.code == 413
    assert "(0028,0008) Number of Frames" in error.message
    assert used < 2**20


@pytest.mark.parametrize("keyword", ["Rows", "Columns"])
def test_zero_size_is_400(make_dicom: Any, slice_16: Any, keyword: str) -> None:
    error = refusal(make_dicom(slice_16, **{keyword: 0}))
    assert error.code == 400
    assert keyword in error.message


def test_short_pixel_data_is_400(make_dicom: Any, slice_16: Any) -> None:
    error = refusal(make_dicom(slice_16, Rows=41))
    assert error.code == 400
    assert error.message.startswith("(7FE0,0010) Pixel Data is shorter")


def test_input_over_max_bytes_is_413_and_a_path_is_not_read(tmp_path: Path, make_dicom: Any, slice_16: Any) -> None:
    data = make_dicom(slice_16)
    assert refusal(data, Limits(max_bytes=len(data) - 1)).code == 413
    path = tmp_path / "huge.dcm"
    with path.open("wb") as file:
        file.truncate(2**33)
    tracemalloc.start()
    with pytest.raises(InputError) as error:
        decode(path)
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert error.value.code == 413
    assert used < 2**20


def test_path_is_decoded_and_a_missing_one_is_an_input_error(
    tmp_path: Path, make_dicom: Any, slice_16: Any, secret: str
) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(make_dicom(slice_16))
    np.testing.assert_array_equal(decode(path).array[0], slice_16)
    with pytest.raises(InputError) as error:
        decode(tmp_path / secret)
    assert secret not in str(error.value)


def test_deflate_bomb_is_413(make_dicom: Any, slice_16: Any) -> None:
    meta = make_dicom(slice_16, uid.DeflatedExplicitVRLittleEndian)
    start = meta.index(b"\x02\x00\x10\x00UI")
    start += 8 + struct.unpack_from("<H", meta, start + 6)[0]
    while meta[start : start + 2] == b"\x02\x00":
        start += 8 + struct.unpack_from("<H", meta, start + 6)[0]
    deflater = zlib.compressobj(9, wbits=-15)
    element = b"\x09\x00\x10\x10OB\0\0" + struct.pack("<I", 400 * 2**20)
    bomb = meta[:start] + deflater.compress(element + bytes(400 * 2**20)) + deflater.flush()
    assert len(bomb) < 2**20
    error, used = peak(bomb)
    assert error.code == 413
    assert "inflates" in error.message
    assert used < 3 * SMALL.max_bytes


def test_truncated_deflated_file_is_400(make_dicom: Any, slice_16: Any) -> None:
    assert refusal(make_dicom(slice_16, uid.DeflatedExplicitVRLittleEndian)[:-200]).code == 400


def test_frame_that_declares_more_than_the_tags_is_refused_undecoded(make_compressed: Any, slice_16: Any) -> None:
    big = np.zeros((3000, 3000), np.uint16)
    frames = {
        uid.JPEGLosslessSV1: imagecodecs.jpeg8_encode(big, lossless=True, predictor=1, bitspersample=16),
        uid.JPEGLSLossless: imagecodecs.jpegls_encode(big),
        uid.JPEG2000Lossless: imagecodecs.jpeg2k_encode(big, level=0, codecformat="jp2", reversible=True),
        uid.HTJ2KLossless: imagecodecs.htj2k_encode(big, reversible=True),
    }
    for syntax, frame in frames.items():
        error, used = peak(make_compressed(slice_16.astype(np.uint16), syntax, [bytes(frame)]))
        assert error.code == 400, syntax.name
        assert "contradicts (0028,0010) Rows" in error.message, syntax.name
        assert used < big.nbytes // 4, syntax.name  # a few copies of the file, none of the image


def test_runs_that_inflate_beyond_the_frame_are_refused(make_compressed: Any, slice_16: Any) -> None:
    options = {"bits_allocated": 16, "bits_stored": 16, "pixel_representation": 0, "number_of_frames": 1}
    big = np.zeros((2000, 2000), np.uint16).tobytes()
    frame = RLELosslessEncoder.encode(
        big, rows=2000, columns=2000, samples_per_pixel=1, photometric_interpretation="MONOCHROME2", **options
    )
    error, used = peak(make_compressed(slice_16, uid.RLELossless, [bytes(frame)]))
    assert error.code == 400
    assert used < 2**21


def test_jp2_box_of_no_length_does_not_hang(make_compressed: Any, slice_16: Any) -> None:
    frame = b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0\0\0\0ftyp" + bytes(100)
    assert refusal(make_compressed(slice_16, uid.JPEG2000Lossless, [frame])).code == 400


def test_truncated_frame_is_400_in_every_codec(make_compressed: Any, slice_12: Any) -> None:
    byte = (slice_12 >> 4).astype(np.uint8)
    frames = {
        uid.JPEGBaseline8Bit: imagecodecs.jpeg8_encode(byte),
        uid.JPEGLSLossless: imagecodecs.jpegls_encode(byte),
        uid.JPEG2000Lossless: imagecodecs.jpeg2k_encode(byte, level=0, codecformat="j2k", reversible=True),
        uid.HTJ2KLossless: imagecodecs.htj2k_encode(byte, reversible=True),
    }
    for syntax, frame in frames.items():
        cut = bytes(frame)[: len(frame) // 2]
        assert refusal(make_compressed(byte, syntax, [cut])).code == 400, syntax.name


def test_fewer_frames_than_declared_is_400(make_compressed: Any, slice_12: Any) -> None:
    frame = bytes(imagecodecs.jpegls_encode(slice_12))
    data = make_compressed(slice_12, uid.JPEGLSLossless, [frame], NumberOfFrames=2, BitsStored=12)
    assert refusal(data).code == 400


@pytest.mark.parametrize(
    ("data", "code", "text"),
    [
        (b"", 400, "curl -T"),
        (b'{"instances": []}', 400, "curl -T"),
        (b"\x1f\x8b\x08" + bytes(50), 400, "gzip"),
        (gzip.compress(bytes(1000), mtime=0), 415, "anything but NIfTI"),
        (b"\x93NUMPY\x01\x00" + bytes(50), 400, ".npy"),
        (b"\x5c\x01\0\0" + bytes(340) + b"n+1\0", 400, "NIfTI"),
        (b"II*\0" + bytes(100), 415, ".nii.gz or .npy"),
        (bytes(range(256)), 400, "DICOM"),
        (bytes(128) + b"DICM", 422, "no (7FE0,0010) Pixel Data"),
    ],
)
def test_other_input_gets_a_hint(data: bytes, code: int, text: str) -> None:
    error = refusal(data)
    assert error.code == code
    assert text in str(error)


def seeds(make_dicom: Any, make_compressed: Any, make_zip: Any) -> list[bytes]:
    array = np.arange(64, dtype=np.uint16).reshape(8, 8)
    plain = [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian]
    tags = {"PixelPaddingValue": 3, "RescaleSlope": 2, "WindowCenter": [1, 2], "WindowWidth": [3, 4]}
    found = [make_dicom(array, syntax, **tags) for syntax in (*plain, uid.DeflatedExplicitVRLittleEndian)]
    frames = {
        uid.JPEGLosslessSV1: imagecodecs.jpeg8_encode(array, lossless=True, predictor=1, bitspersample=16),
        uid.JPEGExtended12Bit: imagecodecs.jpeg8_encode(array, bitspersample=12),
        uid.JPEGLSLossless: imagecodecs.jpegls_encode(array),
        uid.JPEG2000Lossless: imagecodecs.jpeg2k_encode(array, level=0, codecformat="jp2", reversible=True),
        uid.HTJ2KLossless: imagecodecs.htj2k_encode(array, reversible=True),
    }
    found += [make_compressed(array, syntax, [bytes(frame)]) for syntax, frame in frames.items()]
    found.append(make_dicom(np.zeros((8, 8, 3), np.uint8)))
    found.append(make_zip([found[0], found[1]]))
    png = imagecodecs.png_encode(array.astype(np.uint8))
    return [*found, bytes(png), bytes(imagecodecs.jpeg8_encode(array.astype(np.uint8)))]


def outcome(data: bytes) -> Pixels | InputError:
    try:
        return decode(data, SMALL)
    except InputError as error:
        return error


def check(result: Pixels | InputError, secret: str) -> None:
    if isinstance(result, Pixels):
        assert result.array.dtype == np.float32
        assert np.isfinite(result.array).all()
        assert result.facts.stored_range[0] < result.facts.stored_range[1]
    else:
        assert result.code in (400, 413, 415, 422)
        assert secret not in str(result)
        assert "ZEBRA" not in str(result)
        assert result.__cause__ is None
        assert result.__suppress_context__ or result.__context__ is None


FUZZ = settings(max_examples=800)


@FUZZ
@given(data=st.data())
def test_mutated_bytes_give_pixels_or_an_input_error(
    make_dicom: Any, make_compressed: Any, make_zip: Any, secret: str, data: st.DataObject
) -> None:
    pool = seeds_once(make_dicom, make_compressed, make_zip)
    seed = bytearray(data.draw(st.sampled_from(pool)))
    edits = st.tuples(st.integers(0, len(seed) - 1), st.sampled_from([0, 1, 127, 128, 255]) | st.integers(0, 255))
    for at, value in data.draw(st.lists(edits, min_size=1, max_size=12)):
        seed[at] = value
    if data.draw(st.booleans()):
        seed = seed[: data.draw(st.integers(0, len(seed)))]
    check(outcome(bytes(seed)), secret)


_POOL: list[bytes] = []


def seeds_once(make_dicom: Any, make_compressed: Any, make_zip: Any) -> list[bytes]:
    if not _POOL:
        _POOL.extend(seeds(make_dicom, make_compressed, make_zip))
    return _POOL


@FUZZ
@given(
    st.binary(max_size=300),
    st.sampled_from([b"", bytes(128) + b"DICM", b"PK\x03\x04", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"]),
)
def test_arbitrary_bytes_give_an_input_error(body: bytes, start: bytes) -> None:
    assert isinstance(outcome(start + body), InputError)


@pytest.mark.parametrize(
    "tags",
    [
        {"Rows": None},
        {"NumberOfFrames": 3},
        {"RescaleSlope": "0"},
        {"PhotometricInterpretation": "XYZ"},
        {"BitsAllocated": 24},
        {"PixelSpacing": ["1", "2"], "SamplesPerPixel": 4},
    ],
)
def test_errors_quote_no_value_and_chain_nothing(make_dicom: Any, slice_16: Any, secret: str, tags: Any) -> None:
    error = refusal(make_dicom(slice_16, **tags))
    assert error.message.startswith(("(0028,", "(7FE0,"))
    assert error.hint
    check(error, secret)


def test_values_of_numeric_tags_that_are_names_are_not_quoted(make_dicom: Any, slice_16: Any, secret: str) -> None:
    data = make_dicom(slice_16, RescaleSlope="1.234567890123")
    error = refusal(data.replace(b"1.234567890123", secret[:12].ljust(14).encode()))
    assert error.message == "(0028,1053) Rescale Slope is not a number"


def test_decoding_is_silent(
    make_dicom: Any, make_compressed: Any, slice_16: Any, caplog: Any, capfd: Any, secret: str
) -> None:
    disabled = logging.getLogger("pydicom").disabled
    odd = make_dicom(slice_16, PatientBirthDate="20200101").replace(b"20200101", b"ZEBRA-XX")
    broken = make_compressed(slice_16, uid.RLELossless, [b"\x02" + bytes(80)])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for data in (odd, broken, odd.replace(b"HEAD", b"a\\\xff\xfe")):
            outcome(data)
    captured = capfd.readouterr()
    assert not caught
    assert not caplog.records
    assert captured.out + captured.err == ""
    assert logging.getLogger("pydicom").disabled == disabled


def test_limits_of_a_server_come_from_its_settings_and_over_them_its_environment() -> None:
    limits = Limits.of({"max_frames": 7, "max_members": 8}, {"MEDAD_MAX_MEMBERS": "9", "PATH": "/bin"})
    assert (limits.max_frames, limits.max_members, limits.max_bytes) == (7, 9, Limits().max_bytes)
    assert Limits.of(None, {}) == Limits()


@pytest.mark.parametrize("settings", [{"max_frame": 7}, {"max_frames": 0}, {"max_bytes": "much"}, {"max_bytes": -1}])
def test_a_limit_that_is_none_is_named(settings: dict[str, Any]) -> None:
    with pytest.raises(MedadError, match=next(iter(settings))):
        Limits.of(settings, {})
    assert Limits.of({"max_frames": 7}, {}).max_frames == 7
