"""The affine of DICOM series and enhanced images against highdicom and the formula of PS3.3 C.7.6.2.1.1."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import generate_uid

from medad_serve.io import decode

LPS_TO_RAS = np.diag([-1.0, -1, 1, 1])
AXIAL = [1, 0, 0, 0, 1, 0]
OBLIQUE = [0.96, 0.28, 0, -0.168, 0.576, -0.8]
"""Unit and at right angles: 0.96 x 0.6, 0.28 x 0.6 and 0.8."""
NORMAL = np.cross(OBLIQUE[:3], OBLIQUE[3:])


@pytest.fixture
def series(build_dataset: Any, slice_16: Any) -> Callable[..., list[Dataset]]:
    """``series(origins, axes, **tags)``: slices whose first value is their number."""

    def make(origins: Any, axes: Any = AXIAL, **tags: Any) -> list[Dataset]:
        found = []
        for number, origin in enumerate(origins):
            array = slice_16.copy()
            array[0, 0] = number
            place = {"ImagePositionPatient": [f"{v:.6g}" for v in origin], "ImageOrientationPatient": list(axes)}
            ds = build_dataset(array, **{"PixelSpacing": [0.7, 1.3], **place, **tags})
            ds.SOPInstanceUID, ds.FrameOfReferenceUID = generate_uid(), "1.2.3"
            ds.RescaleSlope, ds.RescaleIntercept = 1, 0
            ds.StudyInstanceUID, ds.SliceThickness = "1.2.4", 1
            found.append(ds)
        return found

    return make


def along(places: list[float], shift: Any = (0, 0, 0), normal: Any = (0, 0, 1)) -> Any:
    start = np.array([-50.0, -60, 70])
    return [start + np.array(normal) * place + np.array(shift) * place for place in places]


@pytest.fixture
def stacked(make_zip: Any, to_bytes: Any) -> Callable[[list[Dataset]], Any]:
    return lambda datasets: decode(make_zip(map(to_bytes, datasets)))


@pytest.mark.parametrize(("axes", "normal"), [(AXIAL, (0, 0, 1)), (OBLIQUE, NORMAL)])
def test_affine_of_a_series_is_that_of_highdicom(series: Any, stacked: Any, axes: Any, normal: Any) -> None:
    slices = series(along([0, 2.5, 5, 7.5], normal=normal), axes)
    pixels = stacked([slices[i] for i in (2, 0, 3, 1)])
    oracle = highdicom.get_volume_from_series(slices)
    # highdicom counts slices against the normal: let it begin at ours
    turned = oracle if np.allclose(oracle.position, slices[0].ImagePositionPatient) else oracle.flip_spatial(0)
    np.testing.assert_allclose(pixels.affine, LPS_TO_RAS @ turned.affine, atol=1e-5)
    np.testing.assert_array_equal(pixels.array[:, 0, 0], turned.array[:, 0, 0])
    assert (pixels.facts.notes, pixels.facts.uneven) == ((), "")


def test_gantry_tilt_becomes_a_shear(series: Any, stacked: Any) -> None:
    pixels = stacked(series(along([0, 3, 6], shift=(0, 0.25, 0))))
    expected = [[0, 0, -1.3, 50], [-0.75, -0.7, 0, 60], [3, 0, 0, 70], [0, 0, 0, 1]]
    np.testing.assert_allclose(pixels.affine, expected, atol=1e-9)


def test_positions_rounded_by_the_scanner_are_even(series: Any, stacked: Any) -> None:
    pixels = stacked(series(along(np.round(np.arange(20) * 0.625, 2).tolist())))
    assert pixels.affine[2, 0] == pytest.approx(0.625, abs=1e-3)


@pytest.mark.parametrize(
    ("places", "note"),
    [
        ([0, 5, 10, 20, 25], "1 slice is missing"),
        ([0, 5, 10, 25, 30, 40], "3 slices are missing"),
        ([0, 5, 15], "1 slice is missing"),
        ([0, 4, 8, 12, 13, 20, 27], "the spacing of slices differs at 3 places"),
        ([0, 5, 10, 17, 22, 32], "1 slice is missing, the spacing of slices differs at 1 place"),
    ],
)
def test_uneven_slices_are_counted_and_have_no_affine(series: Any, stacked: Any, places: Any, note: str) -> None:
    pixels = stacked(series(along(places)))
    assert pixels.affine is None
    assert pixels.facts.notes == (note,)
    assert pixels.facts.uneven == note
    assert pixels.frames == len(places)


def test_slices_that_drift_sideways_have_no_affine(series: Any, stacked: Any) -> None:
    origins = along([0, 5, 10])
    origins[1] += (4, 0, 0)
    assert stacked(series(origins)).facts.uneven == "the slices do not lie on one grid"


def test_duplicate_slices_are_left_out_and_counted(series: Any, stacked: Any) -> None:
    pixels = stacked(series(along([0, 5, 10, 5, 10, 0.0004])))
    assert pixels.array[:, 0, 0].tolist() == [0, 1, 2]
    assert pixels.facts.notes == ("3 files left out: another slice lies at the same place",)
    assert [each.source for each in pixels.facts.left_out] == [3, 4, 5]
    assert pixels.affine[2, 0] == 5


def test_rows_that_run_another_way_in_the_same_plane_are_left_out(series: Any, stacked: Any) -> None:
    pixels = stacked(series(along([0, 5, 10])) + series(along([15]), [0, 1, 0, -1, 0, 0]))
    assert pixels.frames == 3
    assert pixels.facts.notes == ("1 file of another orientation left out",)


def test_directions_that_differ_by_rounding_are_one(series: Any, stacked: Any) -> None:
    slices = [*series(along([0, 5])), *series(along([10, 15]), [1, 0.00051, 0, -0.00051, 1, 0])]
    assert stacked(slices).frames == 4


@pytest.mark.parametrize(
    "tags",
    [
        {"ImagePositionPatient": None},
        {"ImageOrientationPatient": None},
        {"PixelSpacing": None},
        {"ImageOrientationPatient": [1, 0, 0, 0.5, 1, 0]},
        {"ImageOrientationPatient": [1, 0, 0, 2, 0, 0]},
        {"PixelSpacing": [1e300, 1]},
        {"ImagePositionPatient": [1e300, 0, 0]},
    ],
)
def test_series_that_does_not_say_where_it_lies_has_no_affine(series: Any, stacked: Any, tags: Any) -> None:
    slices = series(along([0, 5, 10]))
    for ds in slices:
        for keyword, value in tags.items():
            if value is None:
                delattr(ds, keyword)
            else:
                setattr(ds, keyword, value)
    assert stacked(slices).affine is None


def test_slices_of_two_pixel_spacings_have_no_affine(series: Any, stacked: Any) -> None:
    assert stacked(series(along([0, 5])) + series(along([10]), PixelSpacing=[1, 1])).affine is None


def test_single_slice_has_no_affine(series: Any, stacked: Any) -> None:
    pixels = stacked(series(along([0])))
    assert (pixels.affine, pixels.facts.uneven) == (None, "")


@pytest.fixture
def enhanced(build_dataset: Any, to_bytes: Any, slice_16: Any) -> Callable[..., bytes]:
    """An enhanced image: orientation and spacing shared, a place for each frame."""

    def make(places: list[float], axes: Any = OBLIQUE) -> bytes:
        ds = build_dataset(np.stack([slice_16] * len(places)))
        shared, measures, plane = Dataset(), Dataset(), Dataset()
        measures.PixelSpacing, plane.ImageOrientationPatient = [0.7, 1.3], axes
        shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Sequence([measures]), Sequence([plane])
        ds.SharedFunctionalGroupsSequence = Sequence([shared])
        frames = []
        for origin in along(places, normal=NORMAL):
            frame, place = Dataset(), Dataset()
            place.ImagePositionPatient = [f"{v:.8g}" for v in origin]
            frame.PlanePositionSequence = Sequence([place])
            frames.append(frame)
        ds.PerFrameFunctionalGroupsSequence = Sequence(frames)
        return to_bytes(ds)

    return make


@pytest.mark.parametrize("places", [[0, 2, 4, 6], [6, 4, 2, 0]])
def test_affine_of_an_enhanced_image_follows_its_frames(enhanced: Any, make_zip: Any, places: list[float]) -> None:
    alone, zipped = decode(enhanced(places)), decode(make_zip([enhanced(places)]))
    step = NORMAL * (places[1] - places[0])
    lps = np.eye(4)
    lps[:3] = np.stack(
        [step, 0.7 * np.array(OBLIQUE[3:]), 1.3 * np.array(OBLIQUE[:3]), along(places, normal=NORMAL)[0]], 1
    )
    np.testing.assert_allclose(alone.affine, LPS_TO_RAS @ lps, atol=1e-4)
    np.testing.assert_array_equal(zipped.affine, alone.affine)


def test_enhanced_image_with_a_gap_says_so(enhanced: Any) -> None:
    pixels = decode(enhanced([0, 2, 4, 8]))
    assert (pixels.affine, pixels.facts.uneven) == (None, "1 slice is missing")
    assert pixels.facts.notes.count("1 slice is missing") == 1


def test_enhanced_image_out_of_order_has_no_affine(enhanced: Any) -> None:
    pixels = decode(enhanced([0, 4, 2, 6]))
    assert pixels.affine is None
    assert pixels.facts.uneven


def test_affine_of_an_enhanced_image_is_that_of_the_volume_highdicom_wrote(
    build_dataset: Any, to_bytes: Any, slice_16: Any
) -> None:
    stack = np.stack([slice_16] * 5)
    directions = np.stack([NORMAL, OBLIQUE[3:], OBLIQUE[:3]], axis=1)
    volume = highdicom.Volume.from_components(
        stack, direction=directions, spacing=[3, 0.7, 1.3], position=[1, 2, 3], coordinate_system="PATIENT"
    )
    ds, shared = build_dataset(stack), Dataset()
    shared.PixelMeasuresSequence = volume.get_pixel_measures()
    shared.PlaneOrientationSequence = volume.get_plane_orientation()
    ds.SharedFunctionalGroupsSequence = Sequence([shared])
    ds.PerFrameFunctionalGroupsSequence = Sequence([Dataset() for _ in stack])
    places = volume.get_plane_positions()
    for frame, place in zip(ds.PerFrameFunctionalGroupsSequence, places, strict=True):
        frame.PlanePositionSequence = place
    np.testing.assert_allclose(decode(to_bytes(ds)).affine, LPS_TO_RAS @ volume.affine, atol=1e-5)


def test_real_series_of_two_spacings_has_the_affine_of_each_part(
    real_data: Callable[[str], Path], make_zip: Any
) -> None:
    files = [path.read_bytes() for path in sorted(real_data("head_ct_ge_series").glob("*.dcm"))]
    assert len(files) == 28
    for part, spacing, tilted_step in ((files[:14], 4.0, 4.22), (files[14:], 7.0, 7.38)):
        pixels = decode(make_zip(part))
        sides = np.linalg.norm(pixels.affine[:3, :3], axis=0)
        np.testing.assert_allclose(sides, [tilted_step, 0.48828125, 0.48828125], atol=1e-6)
        normal = np.cross(pixels.affine[:3, 2], pixels.affine[:3, 1]) / 0.48828125**2
        assert abs(normal @ pixels.affine[:3, 0]) == pytest.approx(
            spacing, abs=0.01
        )  # the gantry is tilted by 18.5 degrees
    whole = decode(make_zip(files))
    assert whole.frames == 28
    assert whole.affine is None
    assert whole.facts.notes == ("the spacing of slices differs at 14 places",)
