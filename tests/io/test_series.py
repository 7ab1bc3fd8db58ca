from __future__ import annotations

import io
import struct
import zipfile
from typing import Any

import numpy as np
import pytest

from medad_serve.errors import InputError
from medad_serve.io import LeftOut, Limits, decode
from medad_serve.io.members import read_members

AXIAL = [1, 0, 0, 0, 1, 0]


@pytest.fixture
def slices(make_dicom: Any, slice_16: Any) -> list[bytes]:
    """Five slices whose values tell their number, at z = 0, 5, ... 20."""
    tags = [{"ImagePositionPatient": [0, 0, 5 * i], "ImageOrientationPatient": AXIAL} for i in range(5)]
    return [make_dicom(np.full_like(slice_16, i), **t) for i, t in enumerate(tags)]


def test_slices_are_ordered_along_the_normal(make_zip: Any, slices: list[bytes]) -> None:
    pixels = decode(make_zip([slices[i] for i in (3, 0, 4, 1, 2)]))
    assert pixels.array[:, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert pixels.facts.position == 0
    assert pixels.facts.notes == ()


def test_every_frame_tells_the_file_that_it_came_in(
    make_zip: Any, make_dicom: Any, slice_16: Any, slices: list[bytes]
) -> None:
    sent = [slices[3], b"no image", slices[0], slices[4], slices[0], slices[1], slices[2]]
    two = make_dicom(
        np.stack([slice_16, slice_16]),
        NumberOfFrames=2,
        SeriesInstanceUID="1.2.3",
        ImagePositionPatient=[0, 0, 99],
        ImageOrientationPatient=AXIAL,
    )
    for given in (make_zip(sent), tuple(sent)):
        pixels = decode(given)
        assert pixels.facts.sources == (2, 5, 6, 0, 3)
        assert [pixels.array[frame, 0, 0] for frame in range(5)] == [0, 1, 2, 3, 4]
    assert decode((b"no image", two)).facts.sources == (1, 1)
    assert decode(two).facts.sources == decode(slices[0]).facts.sources == ()


def test_reversed_normal_turns_the_order(make_zip: Any, make_dicom: Any, slice_16: Any) -> None:
    turned = [-1, 0, 0, 0, 1, 0]
    tags = [{"ImagePositionPatient": [0, 0, z], "ImageOrientationPatient": turned} for z in (0, 5)]
    pixels = decode(make_zip([make_dicom(np.full_like(slice_16, i), **t) for i, t in enumerate(tags)]))
    assert pixels.array[:, 0, 0].tolist() == [1, 0]


def test_slices_without_position_keep_archive_order_and_say_so(make_zip: Any, make_dicom: Any, slice_16: Any) -> None:
    pixels = decode(make_zip([make_dicom(np.full_like(slice_16, i)) for i in (2, 0, 1)]))
    assert pixels.array[:, 0, 0].tolist() == [2, 0, 1]
    assert "order sent" in pixels.facts.notes[0]


def test_what_is_left_out_is_counted(make_zip: Any, make_dicom: Any, slice_16: Any, slices: list[bytes]) -> None:
    place = {"ImagePositionPatient": [0, 0, 99], "ImageOrientationPatient": AXIAL}
    others = [
        make_dicom(slice_16, SeriesInstanceUID="1.2.3", **place),
        make_dicom(slice_16, SeriesInstanceUID="1.2.4", **place),
        make_dicom(slice_16[:20], **place),
        make_dicom(slice_16, ImagePositionPatient=[0, 0, 0], ImageOrientationPatient=[0, 1, 0, 0, 0, 1]),
        b"a note to myself",
        slices[0][:-100],
    ]
    pixels = decode(make_zip([*others, *slices]))
    assert pixels.array[:, 0, 0].tolist() == [0, 1, 2, 3, 4]
    text = "\n".join(pixels.facts.notes)
    assert "2 files of another series left out" in text
    assert "1 file of another size left out" in text
    assert "1 file of another orientation left out" in text
    assert "1 file left out: it is no DICOM file" in text
    assert "1 file left out: (7FE0,0010) Pixel Data is shorter" in text
    assert [(each.source, each.reason.partition(" is shorter")[0]) for each in pixels.facts.left_out] == [
        (0, "of another series"),
        (1, "of another series"),
        (2, "of another size"),
        (3, "of another orientation"),
        (4, "it is no DICOM file"),
        (5, "(7FE0,0010) Pixel Data"),
    ]


@pytest.mark.parametrize(
    ("ours", "foreign"),
    [
        ({"SeriesInstanceUID": None}, {"SeriesInstanceUID": None, "PatientID": "P2"}),
        ({}, {"PatientID": "P2"}),
        ({"StudyInstanceUID": "1.2.1"}, {"StudyInstanceUID": "1.2.2"}),
        ({}, {"SeriesInstanceUID": "1.2.3"}),
    ],
)
def test_slices_of_another_patient_study_or_series_are_left_out(
    make_zip: Any, make_dicom: Any, slice_16: Any, ours: dict[str, Any], foreign: dict[str, Any]
) -> None:
    files = [
        make_dicom(slice_16, ImagePositionPatient=[0, 0, 5 * place], ImageOrientationPatient=AXIAL, **tags)
        for place, tags in enumerate((ours, foreign, ours))
    ]
    for sent in (make_zip(files), tuple(files)):
        facts = decode(sent).facts
        assert facts.sources == (0, 2)
        assert facts.notes[0] == "1 file of another series left out"
        assert facts.left_out == (LeftOut(1, "of another series"),)
        assert "P2" not in repr(facts)


def test_a_slice_without_a_position_among_others_is_said_to_lack_it(
    make_dicom: Any, slice_16: Any, slices: list[bytes]
) -> None:
    reason = "(0020,0032) Image Position (Patient) or (0020,0037) Image Orientation (Patient)"
    placeless = make_dicom(slice_16, ImageOrientationPatient=AXIAL)
    facts = decode((*slices[:2], placeless)).facts
    assert facts.left_out == (LeftOut(2, f"it lacks {reason}"),)
    assert facts.notes == (f"1 file left out: it lacks {reason}",)
    assert decode((placeless, slices[0])).facts.sources == (1,)
    facts = decode((placeless, slices[0], placeless)).facts
    assert facts.left_out == (LeftOut(1, f"it states {reason}, which most lack"),)


def test_localisers_are_named_and_left_out_however_many(
    make_zip: Any, make_dicom: Any, slice_16: Any, slices: list[bytes]
) -> None:
    place = {"ImagePositionPatient": [0, 0, 50], "ImageOrientationPatient": AXIAL}  # in plane with the slices
    scouts = [make_dicom(slice_16, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], **place) for _ in range(7)]
    pixels = decode(make_zip([*scouts, *slices]))
    assert pixels.array[:, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert pixels.facts.notes == ("7 files left out: localiser (scout view)",)
    assert pixels.facts.left_out == tuple(LeftOut(place, "localiser (scout view)") for place in range(7))
    assert not pixels.facts.localizer
    assert decode(make_zip(scouts[:2])).facts.localizer  # nothing else: the model's check refuses it


def test_parts_of_a_request_are_read_as_the_files_of_a_zip(make_zip: Any, slices: list[bytes]) -> None:
    zipped, parts = decode(make_zip(slices)), decode(tuple(slices))
    assert np.array_equal(parts.array, zipped.array)
    assert parts.facts == zipped.facts
    assert decode((slices[0],)).facts == decode(slices[0]).facts


def test_parts_are_bounded_together(make_zip: Any, slices: list[bytes]) -> None:
    together = sum(map(len, slices))
    assert decode(tuple(slices), Limits(max_bytes=together)).frames == len(slices)
    for limits in (Limits(max_bytes=together - 1), Limits(max_members=len(slices) - 1)):
        with pytest.raises(InputError) as error:
            decode(tuple(slices), limits)
        assert error.value.code == 413
    with pytest.raises(InputError, match="Send the ZIP alone") as error:
        decode((slices[0], make_zip(slices)))
    assert error.value.code == 415
    with pytest.raises(InputError, match="empty"):
        decode(())


def test_padding_is_kept_where_only_some_slices_have_it(make_zip: Any, make_dicom: Any, slice_16: Any) -> None:
    padded = slice_16.copy()
    padded[0] = -2000
    pixels = decode(make_zip([make_dicom(a, PixelPaddingValue=-2000) for a in (slice_16, padded)]))
    assert pixels.padding.shape == pixels.array.shape
    assert not pixels.padding[0].any()
    assert pixels.padding[1].sum() == slice_16.shape[1]


def test_multi_frame_members_are_stacked(make_zip: Any, make_dicom: Any, slice_16: Any) -> None:
    assert decode(make_zip([make_dicom(np.stack([slice_16] * 3))] * 2)).frames == 6


def test_litter_of_operating_systems_is_not_counted(make_zip: Any, slices: list[bytes]) -> None:
    buffer = io.BytesIO(make_zip(slices))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("__MACOSX/._0.dcm", b"x")
        archive.writestr("folder/.DS_Store", b"x")
        archive.writestr("folder/", b"")
    assert decode(buffer.getvalue()).facts.notes == ()


def test_nothing_readable_is_400_with_the_reasons(make_zip: Any, secret: str) -> None:
    for members in ([], [b"text"], [b"text", b"\x89PNG\r\n\x1a\n"]):
        with pytest.raises(InputError, match="no file sent is a readable DICOM image") as error:
            decode(make_zip(members))
        assert error.value.code == 400
        assert secret not in str(error.value)


def test_zip_bomb_is_413(make_zip: Any) -> None:
    bomb = make_zip([b"\0" * 20_000_000] * 3)
    assert len(bomb) < 100_000
    with pytest.raises(InputError) as error:
        decode(bomb, Limits(max_bytes=30_000_000))
    assert error.value.code == 413


def test_declared_sizes_are_not_believed(make_zip: Any) -> None:
    bomb = make_zip([b"\0" * 5_000_000])
    real, fake = struct.pack("<I", 5_000_000), struct.pack("<I", 10)
    with pytest.raises(InputError) as error:  # zipfile stops at the declared end, where the CRC is wrong
        read_members(bomb.replace(real, fake), Limits(max_bytes=1_000_000))
    assert error.value.code == 400


def test_too_many_members_is_413(make_zip: Any) -> None:
    with pytest.raises(InputError, match="more than 20 files") as error:
        decode(make_zip([b"x"] * 21), Limits(max_members=20))
    assert error.value.code == 413


def test_too_many_values_together_is_413(make_zip: Any, slices: list[bytes], slice_16: Any) -> None:
    with pytest.raises(InputError) as error:
        decode(make_zip(slices), Limits(max_values=slice_16.size * 4))
    assert error.value.code == 413


def test_nested_zip_is_415(make_zip: Any, slices: list[bytes]) -> None:
    with pytest.raises(InputError, match="another ZIP") as error:
        decode(make_zip([make_zip(slices)]))
    assert error.value.code == 415


def test_encrypted_zip_is_415(make_zip: Any) -> None:
    data = bytearray(make_zip([b"x" * 100]))
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + offset] |= 1
    with pytest.raises(InputError, match="encrypted") as error:
        decode(bytes(data))
    assert error.value.code == 415


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_inflate_without_bound_are_415(make_zip: Any, method: int) -> None:
    with pytest.raises(InputError, match="other than deflate") as error:
        decode(make_zip([b"x" * 100], method))
    assert error.value.code == 415


def test_truncated_zip_is_400(make_zip: Any, slices: list[bytes]) -> None:
    data = make_zip(slices)
    with pytest.raises(InputError) as error:
        decode(data[: len(data) // 2])
    assert error.value.code == 400
