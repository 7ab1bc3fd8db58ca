from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from medad_serve.errors import InputError
from medad_serve.io import Pixels
from medad_serve.prep import prepare
from medad_serve.prep.regions import ORDER, SCHEMES, Region, cut_whole, find_structures, level_names
from medad_serve.prep.window import apply_window
from medad_serve.spec import PrepSpec, Regions, Window

SPEC = Regions(size=(40, 36, 32), spacing_mm=1.5, window=Window(center=300, width=1800))
SHAPE = (70, 60, 50)
CENTRES = {29: (5.0, -8.0, 12.0), 28: (2.0, -6.0, -22.0)}
"""mm; TotalSegmentator's L3 above its L4."""
HALF = (16.0, 14.0, 10.0)
"""mm, half axes of each ellipsoid along right, anterior, superior."""
AXES = {
    "as DICOM": np.array([[0, 0, -1], [0, -1, 0], [1, 0, 0]]),
    "permuted": np.array([[0, 1, 0], [0, 0, -1], [-1, 0, 0]]),
    "RAS": np.eye(3),
    "oblique": Rotation.from_euler("xyz", (12, -7, 20), degrees=True).as_matrix()[:, [2, 1, 0]],
}


def _affine(axes: np.ndarray, spacing: tuple[float, ...] = (2.5, 1.8, 2.1)) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = axes * np.array(spacing)
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(SHAPE) - 1) / 2)
    return affine


def _grid(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The place of every voxel, mm, (*shape, 3)."""
    return np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]


def _ramp(points: np.ndarray) -> np.ndarray:
    """HU that rise evenly in space: interpolation and smoothing leave them as they are."""
    return 150 + points @ np.array([3.0, -2.0, 4.0])


def _labels(points: np.ndarray, centres: dict[int, tuple[float, ...]] = CENTRES) -> np.ndarray:
    labels = np.zeros(points.shape[:3], np.int32)
    for label, centre in centres.items():
        labels[(((points - centre) / HALF) ** 2).sum(axis=-1) <= 1] = label
    return labels


def _cut(scan: np.ndarray, affine: np.ndarray, labels: np.ndarray, spec: Regions) -> list[Region]:
    return list(cut_whole(scan, affine, find_structures(labels, affine, spec), spec))


@pytest.mark.parametrize("axes", AXES.values(), ids=AXES)
@pytest.mark.parametrize("spacing", [(2.5, 1.8, 2.1), (1.4, 1.4, 1.4)], ids=["coarse", "fine"])
def test_each_crop_holds_the_scan_at_the_places_its_affine_tells(axes: np.ndarray, spacing: tuple[float, ...]) -> None:
    affine = _affine(axes, spacing)
    points = _grid(affine, SHAPE)
    for region in _cut(_ramp(points).astype(np.float32), affine, _labels(points), SPEC):
        there = _grid(region.affine, SPEC.size)
        index = (there - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
        inside = ((index >= 0) & (index <= np.array(SHAPE) - 1)).all(axis=-1)
        expected = apply_window(_ramp(there), SPEC.window)
        assert inside.mean() > 0.5
        assert np.abs(region.volume - expected)[inside].max() < 2e-5


@pytest.mark.parametrize("axes", AXES.values(), ids=AXES)
def test_a_crop_is_centred_on_the_centroid_with_axes_up_back_and_left(axes: np.ndarray) -> None:
    affine = _affine(axes)
    points = _grid(affine, SHAPE)
    labels = _labels(points)
    found = _cut(np.zeros(SHAPE, np.float32), affine, labels, SPEC)
    assert [r.name for r in found] == ["L3", "L4"]
    for region in found:
        middle = region.affine @ [*((np.array(SPEC.size) - 1) / 2), 1]
        assert middle[:3] == pytest.approx(points[labels == region.label].mean(axis=0), abs=1e-6)
        assert middle[:3] == pytest.approx(CENTRES[region.label], abs=0.3)
        steps = region.affine[:3, :3].T
        assert steps == pytest.approx(1.5 * np.array([[0, 0, 1], [0, -1, 0], [-1, 0, 0]]))


def test_a_bright_point_is_found_where_the_affine_puts_it() -> None:
    affine = _affine(AXES["permuted"], (1.5, 1.5, 1.5))
    scan = np.full(SHAPE, -1000, np.float32)
    landmark = (38, 30, 22)
    scan[landmark] = 3000
    region = _cut(scan, affine, _labels(_grid(affine, SHAPE)), SPEC)[0]
    brightest = np.unravel_index(region.volume.argmax(), region.volume.shape)
    offset = region.affine @ [*brightest, 1] - affine @ [*landmark, 1]
    assert np.abs(offset[:3]).max() <= 0.75


def test_beyond_the_scan_lies_the_windows_floor() -> None:
    affine = _affine(AXES["RAS"], (1.0, 1.0, 1.0))
    points = _grid(affine, SHAPE)
    found = _cut(np.full(SHAPE, 800, np.float32), affine, _labels(points, {29: (0, 0, 0)}), SPEC)
    there = np.abs(_grid(found[0].affine, SPEC.size))
    outside = (there > (np.array(SHAPE) + 1) / 2).any(axis=-1)
    assert outside.any()
    assert (found[0].volume[outside] == 0).all()
    assert found[0].volume[20, 18, 16] == pytest.approx(apply_window(np.float32([800]), SPEC.window)[0])


def test_finer_detail_than_the_crops_spacing_is_averaged_away() -> None:
    affine = _affine(AXES["RAS"], (0.5, 0.5, 0.5))
    points = _grid(affine, SHAPE)
    checker = (np.indices(SHAPE).sum(axis=0) % 2 * 1000).astype(np.float32)
    spec = SPEC.model_copy(update={"size": (12, 12, 12)})
    labels = (np.abs(points).max(axis=-1) < 7).astype(np.int32) * 29
    region = _cut(checker, affine, labels, spec)[0]
    assert np.ptp(region.volume) < 0.02
    assert region.volume.mean() == pytest.approx(apply_window(np.float32([500]), SPEC.window)[0], abs=2e-3)


def _faults(labels: np.ndarray, affine: np.ndarray) -> dict[str, str]:
    return {s.name: s.fault for s in find_structures(labels, affine, SPEC)}


def test_vertebrae_that_reach_the_border_are_left_out() -> None:
    affine = _affine(AXES["RAS"])
    labels = _labels(_grid(affine, SHAPE), {**CENTRES, 30: (5.0, -8.0, 46.0)})
    assert _faults(labels, affine) == {"L2": "reaches the border of the scan", "L3": "", "L4": ""}
    found = _cut(np.zeros(SHAPE, np.float32), affine, labels, SPEC)
    assert [r.name for r in found] == ["L3", "L4"]


def test_a_prepared_scan_tells_which_vertebrae_were_left_out() -> None:
    affine = _affine(AXES["RAS"])
    labels = _labels(_grid(affine, SHAPE), {**CENTRES, 30: (5.0, -8.0, 46.0)})
    pixels = Pixels(np.zeros(SHAPE, np.float32), "nifti", affine=affine, labels=labels)
    found = prepare(pixels, PrepSpec(size=SPEC.size, regions=SPEC))
    assert found.regions == ("L3", "L4")
    assert found.tensor.shape == (2, 1, *SPEC.size)
    assert found.notes == ("L2 reaches the border of the scan and was left out",)


def test_padding_of_a_scan_is_the_windows_floor_in_its_crops() -> None:
    affine = _affine(AXES["RAS"])
    labels = _labels(_grid(affine, SHAPE))
    padding = np.zeros(SHAPE, np.bool_)
    padding[:, :, :25] = True
    values = np.where(padding, 30000, 500).astype(np.float32)
    pixels = Pixels(values, "nifti", padding=padding, affine=affine, labels=labels)
    lower = prepare(pixels, PrepSpec(size=SPEC.size, regions=SPEC)).tensor[1, 0]
    assert lower[:10].max() == 0
    assert lower.max() <= apply_window(np.float32([500]), SPEC.window)[0]


def test_slips_of_a_mask_are_left_out_and_specks_do_not_count() -> None:
    affine = _affine(AXES["RAS"])
    labels = _labels(_grid(affine, SHAPE))
    before = find_structures(labels, affine, SPEC)
    labels[0, 0, 0] = 29
    labels[30:32, 30:32, 40:42] = 31
    assert _faults(labels, affine) == {"L1": "is too small to be a vertebra", "L3": "", "L4": ""}
    assert find_structures(labels, affine, SPEC)[1].centre_mm == pytest.approx(before[0].centre_mm)


def test_a_vertebra_that_no_crop_of_this_size_can_hold_is_left_out() -> None:
    affine = _affine(AXES["RAS"])
    labels = _labels(_grid(affine, SHAPE))
    small = SPEC.model_copy(update={"size": (40, 16, 40)})
    assert {s.fault for s in find_structures(labels, affine, small)} == {"is larger than the crop"}


@pytest.mark.parametrize(("scheme", "labels"), [("verse", (7, 8, 19, 20, 25)), ("totalsegmentator", (44, 43, 32, 31))])
def test_levels_are_named_by_the_published_numbers(scheme: str, labels: tuple[int, ...]) -> None:
    heights = {label: -10.0 * place for place, label in enumerate(labels)}
    assert list(level_names(heights).values()) == ["C7", "T1", "T12", "L1", "L6"][: len(labels)]
    assert level_names(heights) == level_names(heights, scheme)  # type: ignore[arg-type]


def test_every_level_has_one_number_in_a_scheme() -> None:
    assert sorted(SCHEMES["verse"].values()) == sorted(ORDER)
    assert sorted(SCHEMES["totalsegmentator"].values()) == sorted(set(ORDER) - {"T13", "L6"})
    assert [SCHEMES["totalsegmentator"][n] for n in (27, 31, 32, 50)] == ["L5", "L1", "T12", "C1"]
    assert [SCHEMES["verse"][n] for n in (1, 19, 24, 28)] == ["C1", "T12", "L5", "T13"]


def test_the_order_of_levels_decides_where_numbers_are_in_both_schemes() -> None:
    organs = {label: float(label * 7 % 11) for label in range(1, 27)}
    spine = {label: float(label) for label in range(27, 51)}
    assert level_names({**organs, **spine})[28] == "L4"
    thoracic = {18: 40.0, 19: 30.0, 28: 20.0, 20: 10.0}
    assert level_names(thoracic) == {18: "T11", 19: "T12", 28: "T13", 20: "L1"}
    assert level_names({28: 0.0}) == {28: "L4"}
    assert level_names({22: 0.0}) == {22: "L3"}


def test_one_level_out_of_order_does_not_hide_the_scheme() -> None:
    heights = {27: 0.0, 28: 30.0, 29: 90.0, 30: 60.0, 31: 120.0, 32: 150.0}
    assert level_names(heights)[29] == "L3"


def test_a_mask_of_parts_of_vertebrae_is_refused() -> None:
    subregions = {label: float(label * 7 % 10) for label in range(41, 51)}
    with pytest.raises(InputError, match="neither VerSe nor TotalSegmentator") as refusal:
        level_names(subregions)
    assert refusal.value.code == 422
