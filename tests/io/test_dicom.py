from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import imagecodecs
import numpy as np
import pytest
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, pixel_array
from pydicom.sequence import Sequence

from medad_serve.errors import InputError
from medad_serve.io import decode


@pytest.mark.parametrize(
    "syntax",
    [
        uid.ImplicitVRLittleEndian,
        uid.ExplicitVRLittleEndian,
        uid.ExplicitVRBigEndian,
        uid.DeflatedExplicitVRLittleEndian,
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "u4", "i4"])
def test_uncompressed_syntaxes_keep_every_value(make_dicom: Any, slice_16: Any, syntax: Any, dtype: str) -> None:
    array = slice_16.clip(0, 255).astype(dtype) if dtype[0] == "u" else slice_16.astype(dtype)
    pixels = decode(make_dicom(array, syntax, RescaleSlope=2, RescaleIntercept=-1024))
    np.testing.assert_array_equal(pixels.array[0], array.astype(np.float32) * 2 - 1024)
    assert pixels.facts.transfer_syntax == syntax


@pytest.mark.parametrize("vr", ["OB", "OW", "UN"])
@pytest.mark.parametrize("shape", [(8, 6), (3, 5), (3, 3, 5)], ids=str)
def test_bytes_in_big_endian_words_are_read_as_pydicom_does(
    build_dataset: Any, to_bytes: Any, vr: str, shape: tuple[int, ...]
) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    ds = build_dataset(array, uid.ExplicitVRBigEndian)
    stored = array.tobytes() + b"\0" * (array.size % 2)
    ds["PixelData"].VR, ds["PixelData"].value = vr, np.frombuffer(stored, "u2").byteswap().tobytes()
    data = to_bytes(ds)
    found = decode(data).array
    np.testing.assert_array_equal(found.squeeze(), pixel_array(io.BytesIO(data)))
    if vr == "OW":
        np.testing.assert_array_equal(found.squeeze(), array)


def test_big_endian_words_without_their_last_byte_are_400(build_dataset: Any, to_bytes: Any) -> None:
    ds = build_dataset(np.zeros((3, 5), np.uint8), uid.ExplicitVRBigEndian)
    ds["PixelData"].VR, ds["PixelData"].value = "OW", bytes(14)
    with pytest.raises(InputError, match="shorter") as error:
        decode(to_bytes(ds))
    assert error.value.code == 400


def reversible(array: Any, bits: int) -> dict[uid.UID, bytes]:
    unsigned = array.view(f"u{array.dtype.itemsize}") & ((1 << bits) - 1)
    return {
        uid.JPEGLossless: imagecodecs.jpeg8_encode(unsigned, lossless=True, predictor=7, bitspersample=bits),
        uid.JPEGLosslessSV1: imagecodecs.ljpeg_encode(unsigned, bitspersample=bits),
        uid.JPEGLSLossless: imagecodecs.jpegls_encode(unsigned),
        uid.JPEG2000Lossless: imagecodecs.jpeg2k_encode(
            array, level=0, codecformat="j2k", reversible=True, bitspersample=bits
        ),
        uid.HTJ2KLossless: imagecodecs.htj2k_encode(array, reversible=True),
        uid.HTJ2KLosslessRPCL: imagecodecs.htj2k_encode(unsigned, reversible=True),
    }


@pytest.mark.parametrize(("bits", "dtype"), [(8, "u1"), (12, "u2"), (12, "i2"), (13, "i2"), (16, "u2"), (16, "i2")])
def test_lossless_syntaxes_keep_every_value(make_compressed: Any, slice_16: Any, bits: int, dtype: str) -> None:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if dtype[0] == "i" else (0, 2**bits - 1)
    array = (slice_16.astype(int) * 40).clip(low, high).astype(dtype)
    for syntax, frame in reversible(array, bits).items():
        data = make_compressed(array, syntax, [bytes(frame)], BitsStored=bits)
        np.testing.assert_array_equal(decode(data).array[0], array, err_msg=syntax.name)


def test_rle_keeps_every_value(build_dataset: Any, to_bytes: Any, slice_16: Any) -> None:
    ds = build_dataset(np.stack([slice_16, slice_16[::-1]]))
    ds.compress(uid.RLELossless)
    np.testing.assert_array_equal(decode(to_bytes(ds)).array, [slice_16, slice_16[::-1]])


def test_lossy_syntaxes_equal_other_codecs(make_compressed: Any, slice_12: Any) -> None:
    byte = (slice_12 >> 4).astype(np.uint8)
    cases = [
        (uid.JPEGBaseline8Bit, byte, imagecodecs.jpeg8_encode(byte, level=90), {}, "pylibjpeg", 1),
        (uid.JPEGExtended12Bit, slice_12, imagecodecs.jpeg8_encode(slice_12, bitspersample=12), {}, "pylibjpeg", 1),
        (uid.JPEGLSNearLossless, slice_12, imagecodecs.jpegls_encode(slice_12, level=3), {}, "pyjpegls", 0),
        (uid.JPEG2000, slice_12, imagecodecs.jpeg2k_encode(slice_12, level=85, codecformat="j2k"), {}, "pylibjpeg", 0),
    ]
    for syntax, array, frame, tags, plugin, step in cases:
        bits = {} if array.dtype == np.uint8 else {"BitsStored": 12}
        data = make_compressed(array, syntax, [bytes(frame)], **bits, **tags)
        values = decode(data).array[0]
        expected = pixel_array(io.BytesIO(data), decoding_plugin=plugin)
        np.testing.assert_allclose(values, expected, atol=step, rtol=0, err_msg=syntax.name)
        assert np.abs(values - array).max() < 40, syntax.name


def test_lossy_htj2k_does_not_wrap_at_white(make_compressed: Any) -> None:
    array = np.random.default_rng(0).choice([0, 1, 254, 255], (40, 48)).astype(np.uint8)
    frame = bytes(imagecodecs.htj2k_encode(array, reversible=False))
    values = decode(make_compressed(array, uid.HTJ2K, [frame])).array[0]
    assert np.abs(values - array).max() <= 2


def test_unsupported_syntax_is_named(make_compressed: Any, slice_16: Any) -> None:
    data = make_compressed(slice_16, uid.MPEG2MPML, [b"\0" * 16])
    with pytest.raises(InputError, match=r"\(0002,0010\) Transfer Syntax UID is not supported: MPEG2") as error:
        decode(data)
    assert error.value.code == 415


def test_unused_high_bits_are_ignored(make_dicom: Any) -> None:
    signed = np.array([[0x0830, 0xF830, 0x07FF, 0x1001]], "<u2").view("<i2")
    pixels = decode(make_dicom(signed, BitsStored=12))
    np.testing.assert_array_equal(pixels.array[0], [[-2000, -2000, 2047, 1]])
    unsigned = decode(make_dicom(signed.view("<u2"), BitsStored=12))
    np.testing.assert_array_equal(unsigned.array[0], [[0x830, 0x830, 0x7FF, 1]])
    assert unsigned.facts.stored_range == (0, 4095)


def test_retired_high_bit_is_refused_rather_than_misread(make_dicom: Any, slice_16: Any) -> None:
    with pytest.raises(InputError, match=r"\(0028,0102\) High Bit") as error:
        decode(make_dicom(slice_16, BitsStored=12, HighBit=15))
    assert error.value.code == 415


def test_float_pixel_data_is_read(build_dataset: Any, to_bytes: Any, slice_16: Any) -> None:
    ds = build_dataset(slice_16, PixelData=b"")
    del ds.PixelData, ds.PixelRepresentation, ds.BitsStored, ds.HighBit
    ds.BitsAllocated, ds.FloatPixelData = 32, (slice_16 / 8).astype("<f4").tobytes()
    pixels = decode(to_bytes(ds))
    np.testing.assert_array_equal(pixels.array[0], slice_16 / 8)
    bad = (slice_16 / 8).astype("<f4")
    bad[3, 3] = np.nan
    ds.FloatPixelData = bad.tobytes()
    with pytest.raises(InputError, match=r"\(7FE0,0008\) Float Pixel Data holds values that are not finite"):
        decode(to_bytes(ds))


def test_missing_rescale_tags_change_nothing(make_dicom: Any, slice_16: Any) -> None:
    pixels = decode(make_dicom(slice_16))
    np.testing.assert_array_equal(pixels.array[0], slice_16)
    assert pixels.facts.stored_range == (-32768, 32767)


def test_stored_range_is_rescaled_and_rises(make_dicom: Any, slice_16: Any) -> None:
    pixels = decode(make_dicom(slice_16, RescaleSlope="-0.5", RescaleIntercept="10"))
    assert pixels.facts.stored_range == (-0.5 * 32767 + 10, 0.5 * 32768 + 10)


def test_a_modality_transform_is_known_where_the_file_states_one(make_dicom: Any, slice_16: Any) -> None:
    assert not decode(make_dicom(slice_16)).facts.rescaled
    assert decode(make_dicom(slice_16, RescaleSlope=1, RescaleIntercept=0)).facts.rescaled
    group, item = Dataset(), Dataset()
    item.RescaleSlope, item.RescaleIntercept = 2, -1000
    group.PixelValueTransformationSequence = [item]
    assert decode(make_dicom(slice_16, SharedFunctionalGroupsSequence=[group])).facts.rescaled


def test_bits_are_those_stored(make_dicom: Any, build_dataset: Any, to_bytes: Any) -> None:
    assert decode(make_dicom(np.zeros((20, 20), np.uint16), BitsStored=12)).facts.bits == 12
    ds = build_dataset(np.zeros((20, 20), np.float32))
    ds.FloatPixelData = ds.PixelData
    del ds.PixelData
    assert decode(to_bytes(ds)).facts.bits is None


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (["ORIGINAL", "PRIMARY", "AXIAL"], False),
        (["ORIGINAL", "PRIMARY", "LOCALIZER"], True),
        (["ORIGINAL", "PRIMARY", "LOCALIZER", "CT_SOM5 TOP"], True),
        (["DERIVED", "SECONDARY", "OTHER", "SCOUT"], True),
        (["LOCALIZER", "PRIMARY"], False),
        (["DERIVED"], False),
    ],
)
def test_a_localiser_is_known_by_its_image_type(
    make_dicom: Any, slice_16: Any, kind: list[str], expected: bool
) -> None:
    assert decode(make_dicom(slice_16, ImageType=kind)).facts.localizer is expected


@pytest.mark.parametrize(("slope", "intercept"), [("0", "0"), ("1e300", "0"), ("1", "9e99")])
def test_unusable_rescale_is_422(make_dicom: Any, slice_16: Any, slope: str, intercept: str) -> None:
    with pytest.raises(InputError, match=r"\(0028,1053\) Rescale Slope") as error:
        decode(make_dicom(slice_16, RescaleSlope=slope, RescaleIntercept=intercept))
    assert error.value.code == 422


@pytest.mark.parametrize("syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian])
@pytest.mark.parametrize("data_vr", ["US", "OW"])
def test_modality_lut_equals_pydicom(build_dataset: Any, to_bytes: Any, syntax: Any, data_vr: str) -> None:
    array = np.arange(64, dtype=np.uint16).reshape(8, 8)
    table = (np.arange(40) ** 2 * 30 % 60000).tolist()
    ds = build_dataset(array, syntax, RescaleSlope=3, RescaleIntercept=5)
    item = Dataset()
    item.LUTDescriptor = [40, 10, 16]
    order = "<" if syntax.is_little_endian else ">"
    item.add_new("LUTData", data_vr, table if data_vr == "US" else np.array(table, f"{order}u2").tobytes())
    item.ModalityLUTType = "US"
    ds.ModalityLUTSequence = Sequence([item])
    pixels = decode(to_bytes(ds))
    plain = build_dataset(array)
    plain.ModalityLUTSequence = Sequence([Dataset()])
    plain.ModalityLUTSequence[0].LUTDescriptor = [40, 10, 16]
    plain.ModalityLUTSequence[0].add_new("LUTData", "US", table)
    np.testing.assert_array_equal(pixels.array[0], apply_modality_lut(array, plain))
    assert pixels.facts.stored_range == (0, max(table))


def functional_groups(pairs: list[tuple[float, float]]) -> Sequence:
    groups = []
    for slope, intercept in pairs:
        group, item = Dataset(), Dataset()
        item.RescaleSlope, item.RescaleIntercept, item.RescaleType = slope, intercept, "HU"
        group.PixelValueTransformationSequence = Sequence([item])
        groups.append(group)
    return Sequence(groups)


def test_enhanced_image_rescales_each_frame(make_dicom: Any, slice_16: Any) -> None:
    stack = np.stack([slice_16, slice_16 + 1, slice_16 + 2])
    pairs = [(1, -1024), (2, 0), (0.5, 7)]
    per_frame = decode(make_dicom(stack, PerFrameFunctionalGroupsSequence=functional_groups(pairs)))
    for values, frame, (slope, intercept) in zip(per_frame.array, stack, pairs, strict=True):
        np.testing.assert_array_equal(values, frame.astype(np.float32) * slope + intercept)
    shared = decode(make_dicom(stack, SharedFunctionalGroupsSequence=functional_groups([(1, -1024)])))
    np.testing.assert_array_equal(shared.array, stack.astype(np.float32) - 1024)


def test_enhanced_image_with_too_few_groups_is_refused(make_dicom: Any, slice_16: Any) -> None:
    stack = np.stack([slice_16] * 3)
    with pytest.raises(InputError, match=r"\(5200,9230\) .* has fewer items than frames"):
        decode(make_dicom(stack, PerFrameFunctionalGroupsSequence=functional_groups([(1, 0)] * 2)))


def test_enhanced_geometry_comes_from_the_groups(make_dicom: Any, slice_16: Any) -> None:
    group, measures, place, plane = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, place.ImagePositionPatient = [0.5, 0.25], [1, 2, 30]
    plane.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    group.PixelMeasuresSequence = Sequence([measures])
    group.PlanePositionSequence = Sequence([place])
    group.PlaneOrientationSequence = Sequence([plane])
    pixels = decode(make_dicom(slice_16, SharedFunctionalGroupsSequence=Sequence([group])))
    assert pixels.spacing_mm == (0.5, 0.25)
    assert pixels.facts.position == 30


def test_monochrome1_is_flagged_and_left_alone(make_dicom: Any, slice_16: Any) -> None:
    pixels = decode(make_dicom(slice_16, PhotometricInterpretation="MONOCHROME1"))
    assert pixels.inverted
    np.testing.assert_array_equal(pixels.array[0], slice_16)


@pytest.mark.parametrize("planar", [0, 1])
def test_colour_is_told_apart_by_plane_order(make_dicom: Any, planar: int) -> None:
    rgb = np.random.default_rng(1).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    data = rgb.transpose(2, 0, 1).tobytes() if planar else rgb.tobytes()
    pixels = decode(make_dicom(rgb, PlanarConfiguration=planar, PixelData=data))
    np.testing.assert_array_equal(pixels.array[0], rgb)
    assert pixels.is_color


def test_equal_channels_are_grey(make_dicom: Any) -> None:
    rgb = np.repeat(np.arange(30, dtype=np.uint8).reshape(6, 5, 1), 3, axis=2)
    pixels = decode(make_dicom(rgb))
    np.testing.assert_array_equal(pixels.array[0], rgb[..., 0])
    assert pixels.facts.stored_range == (0, 255)
    assert pixels.facts.notes


def test_frames_beyond_the_declared_number_are_noted(make_dicom: Any, slice_16: Any) -> None:
    stack = np.stack([slice_16] * 3)
    pixels = decode(make_dicom(stack, NumberOfFrames=2))
    assert pixels.frames == 2
    assert pixels.facts.notes == ("frames beyond (0028,0008) Number of Frames left out: 1",)


def test_facts_hold_what_preparation_needs(make_dicom: Any, slice_16: Any) -> None:
    tags = {
        "WindowCenter": [40, 600],
        "WindowWidth": [80, 2800],
        "PixelSpacing": [0.5, 0.4],
        "ImagePositionPatient": [-10, 20, 33.5],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
    }
    pixels = decode(make_dicom(slice_16, **tags))
    facts = pixels.facts
    assert facts.windows == ((40, 80), (600, 2800))
    assert (facts.modality, facts.body_part, facts.position) == ("CT", "HEAD", 33.5)
    assert facts.normal == (0, 0, 1)
    assert pixels.spacing_mm == (0.5, 0.4)
    assert len(facts.series) == 16
    assert "1.2.826" not in facts.series


@pytest.mark.parametrize(("stated", "found"), [("MR", "MR"), ("DOE JANE", "OT"), ("DOE^JANE", ""), ("", "")])
def test_a_modality_is_a_term_of_the_standard_or_nothing(
    make_dicom: Any, slice_16: Any, stated: str, found: str
) -> None:
    assert decode(make_dicom(slice_16, Modality=stated)).facts.modality == found


@pytest.mark.parametrize("widths", [[0], [80, 0], [-5]])
def test_window_of_no_width_is_refused(make_dicom: Any, slice_16: Any, widths: list[int]) -> None:
    with pytest.raises(InputError, match=r"\(0028,1051\) Window Width must be greater than 0") as caught:
        decode(make_dicom(slice_16, WindowCenter=[40] * len(widths), WindowWidth=widths))
    assert caught.value.code == 422


@pytest.mark.parametrize("end", [144, 200, 260])
def test_file_cut_short_in_its_meta_information_is_not_decodable(make_dicom: Any, slice_16: Any, end: int) -> None:
    with pytest.raises(InputError) as caught:
        decode(make_dicom(slice_16)[:end])
    assert caught.value.code == 400


@pytest.mark.parametrize("spacing", [["0", "1"], ["-1", "1"], ["1"], None])
def test_unusable_spacing_falls_back_or_is_none(make_dicom: Any, slice_16: Any, spacing: Any) -> None:
    tags = {} if spacing is None else {"PixelSpacing": spacing}
    assert decode(make_dicom(slice_16, **tags)).spacing_mm is None
    assert decode(make_dicom(slice_16, **tags, ImagerPixelSpacing=[0.2, 0.1])).spacing_mm == (0.2, 0.1)


def test_file_without_preamble_is_read(make_dicom: Any, slice_16: Any) -> None:
    np.testing.assert_array_equal(decode(make_dicom(slice_16)[132:]).array[0], slice_16)


MISSING: list[tuple[str, str]] = [
    ("Rows", "(0028,0010) Rows is missing"),
    ("BitsStored", "(0028,0101) Bits Stored is missing"),
    ("PixelRepresentation", "(0028,0103) Pixel Representation is missing"),
    ("PhotometricInterpretation", "(0028,0004) Photometric Interpretation is missing"),
]


@pytest.mark.parametrize(("keyword", "text"), MISSING)
def test_missing_layout_tag_is_named_never_guessed(
    make_dicom: Callable[..., bytes], slice_16: Any, keyword: str, text: str
) -> None:
    with pytest.raises(InputError) as error:
        decode(make_dicom(slice_16, **{keyword: None}))
    assert error.value.code == 400
    assert error.value.message == text
