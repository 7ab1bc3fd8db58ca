"""ZIPs that hold volumes: which file is the scan, which the mask, and whether they belong together."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from typing import Any

import nibabel
import numpy as np
import pytest
from nibabel.processing import resample_from_to

from medad_serve.errors import InputError
from medad_serve.io import Limits, decode
from medad_serve.io.mask import resample

AFFINE = np.diag([-2.0, -2, 4, 1])


@pytest.fixture
def scan() -> Any:
    """A CT along the axes of NIfTI, 8 x 10 x 12."""
    return np.random.default_rng(0).integers(-1000, 1500, (8, 10, 12)).astype(np.int16)


@pytest.fixture
def mask() -> Any:
    labels = np.zeros((8, 10, 12), np.uint8)
    labels[2:5, 3:6, 1:9] = 20
    labels[5:7, 3:6, 1:9] = 21
    return labels


def refusal(data: bytes, limits: Limits = Limits()) -> InputError:  # noqa: B008  frozen
    with pytest.raises(InputError) as error:
        decode(data, limits)
    assert "ZEBRA" not in str(error.value)
    return error.value


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("dtype", ["u1", "i2", "f4", "f8"])
def test_mask_is_told_by_content_in_either_order(
    make_zip: Any, make_nifti: Any, scan: Any, mask: Any, dtype: str, swap: bool
) -> None:
    files = [make_nifti(scan, AFFINE), gzip.compress(make_nifti(mask.astype(dtype), AFFINE))]
    pixels = decode(make_zip(files[::-1] if swap else files))
    np.testing.assert_array_equal(pixels.array, scan.T)
    np.testing.assert_array_equal(pixels.labels, mask.T)
    assert pixels.labels.dtype == np.int32


def test_scaled_mask_holds_the_scaled_labels(make_zip: Any, make_nifti: Any, scan: Any, mask: Any) -> None:
    scaled = make_nifti(mask // 20, AFFINE, scl_slope=20, scl_inter=0)
    assert set(np.unique(decode(make_zip([make_nifti(scan, AFFINE), scaled])).labels)) == {0, 20}


def test_mask_in_other_axes_lies_on_the_scan(make_zip: Any, make_nifti: Any, scan: Any, mask: Any) -> None:
    turn = nibabel.orientations.axcodes2ornt("AIR")
    turned = nibabel.Nifti1Image(mask, AFFINE).as_reoriented(
        nibabel.orientations.ornt_transform(nibabel.orientations.io_orientation(AFFINE), turn)
    )
    other = make_nifti(np.asarray(turned.dataobj), turned.affine)
    np.testing.assert_array_equal(decode(make_zip([make_nifti(scan, AFFINE), other])).labels, mask.T)


def test_mask_of_another_grid_than_its_nifti_is_422(make_zip: Any, make_nifti: Any, scan: Any, mask: Any) -> None:
    ct = make_nifti(scan, AFFINE)
    assert "another shape" in refusal(make_zip([ct, make_nifti(mask[1:], AFFINE)])).message
    for field, change in (((0, 3), 0.01), ((2, 2), 0.002)):
        moved = AFFINE.copy()
        moved[field] += change
        error = refusal(make_zip([ct, make_nifti(mask, moved)]))
        assert error.code == 422
        assert "affines of label mask and scan differ by more than 0.001 mm" in error.message
    moved[2, 2] = AFFINE[2, 2] + 0.0005
    assert decode(make_zip([ct, make_nifti(mask, moved)])).labels is not None


def test_two_files_that_both_may_be_the_mask_are_422_with_a_hint(make_zip: Any, make_nifti: Any, mask: Any) -> None:
    error = refusal(make_zip([make_nifti(mask, AFFINE), make_nifti(mask * 2, AFFINE)]))
    assert (error.code, error.message) == (422, "either NIfTI file may be the label mask")
    assert "at most 255" in error.hint


def no_mask(case: str, mask: Any) -> Any:
    if case == "negative":
        return mask.astype(np.int16) - 1
    if case == "fraction":
        return mask.astype(np.float32) + np.float32(0.5)
    if case == "not a number":
        return np.where(mask, np.float32(np.nan), 0)
    if case == "beyond int32":
        return mask.astype(np.int64) << 30
    many = np.zeros(mask.size, np.int32)
    many[:256] = np.arange(1, 257) * (1 if case == "many" else 70000)
    return many.reshape(mask.shape)


@pytest.mark.parametrize("case", ["negative", "fraction", "not a number", "beyond int32", "many", "many and large"])
def test_neither_a_mask_is_422(make_zip: Any, make_nifti: Any, scan: Any, mask: Any, case: str) -> None:
    error = refusal(make_zip([make_nifti(scan, AFFINE), make_nifti(no_mask(case, mask), AFFINE)]))
    assert (error.code, error.message) == (422, "neither NIfTI file is a label mask")


def test_255_labels_are_a_mask_however_large(make_zip: Any, make_nifti: Any, scan: Any, mask: Any) -> None:
    labels = no_mask("many and large", mask)
    labels.flat[255] = 0
    found = decode(make_zip([make_nifti(scan, AFFINE), make_nifti(labels, AFFINE)])).labels
    np.testing.assert_array_equal(found, labels.T)


def saved(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def test_one_volume_in_a_zip_is_decoded_as_it_is(make_zip: Any, make_nifti: Any, scan: Any) -> None:
    for data in (make_nifti(scan, AFFINE), gzip.compress(make_nifti(scan, AFFINE)), saved(scan)):
        alone, zipped = decode(data), decode(make_zip([data]))
        np.testing.assert_array_equal(zipped.array, alone.array)
        assert (zipped.kind, zipped.facts) == (alone.kind, alone.facts)


def test_other_files_beside_a_volume_are_counted(make_zip: Any, make_nifti: Any, scan: Any) -> None:
    pixels = decode(make_zip([b"a note", make_nifti(scan, AFFINE), gzip.compress(b"another")]))
    assert pixels.facts.notes == ("2 files left out: no volume",)
    assert [(each.source, each.reason) for each in pixels.facts.left_out] == [(0, "no volume"), (2, "no volume")]


def test_more_than_a_scan_and_its_mask_is_422(
    make_zip: Any, make_nifti: Any, make_dicom: Any, slice_16: Any, scan: Any, mask: Any
) -> None:
    ct, labels, array, dicom = make_nifti(scan, AFFINE), make_nifti(mask, AFFINE), saved(scan), make_dicom(slice_16)
    for files in ([ct, ct, labels], [array, labels], [array, array], [dicom, array], [dicom, ct, labels]):
        assert refusal(make_zip(files)).message == "the files are more than one volume and its label mask"


@pytest.fixture
def slices(make_dicom: Any) -> Callable[..., list[bytes]]:
    """``slices(places, axes)``: 16 x 20 pixels of 2 x 1.5 mm, values of their number."""

    def make(places: Any, axes: Any = (1, 0, 0, 0, 1, 0), **tags: Any) -> list[bytes]:
        normal = np.cross(axes[:3], axes[3:])
        return [
            make_dicom(
                np.full((16, 20), number, np.int16),
                ImagePositionPatient=[f"{v:.6g}" for v in np.array([-15.0, -16, 4]) + normal * place],
                ImageOrientationPatient=list(axes),
                **{"PixelSpacing": [2, 1.5], **tags},
            )
            for number, place in enumerate(places)
        ]

    return make


@pytest.mark.parametrize(
    "axes", [(1, 0, 0, 0, 1, 0), (0.955336, 0.29552, 0, -0.29552, 0.955336, 0), (0, 1, 0, 0, 0, -1)]
)
@pytest.mark.parametrize("grid", ["fine", "coarse", "turned"])
def test_mask_beside_a_series_is_resampled_as_nibabel_does(
    make_zip: Any, make_nifti: Any, slices: Any, axes: Any, grid: str
) -> None:
    spacing = {"fine": (0.7, 0.9, 1.1), "coarse": (5, 4, 6), "turned": (2, 2, 2)}[grid]
    affine = np.diag([*spacing, 1.0])
    if grid == "turned":
        affine[:3, :3] = nibabel.eulerangles.euler2mat(0.3, 0.2, 0.1) @ affine[:3, :3]
    shape = tuple(int(90 / s) for s in spacing)
    affine[:3, 3] = -affine[:3, :3] @ (np.array(shape) / 2) + (0.13, 0.17, 0.11)
    labels = np.random.default_rng(1).integers(0, 9, shape).astype(np.uint8)
    pixels = decode(make_zip([*slices([0, 3, 6, 9], axes), make_nifti(labels, affine)]))
    oracle = resample_from_to(
        nibabel.Nifti1Image(labels, affine), (pixels.array.shape, pixels.affine), order=0, mode="grid-constant"
    )
    np.testing.assert_array_equal(pixels.labels, np.asarray(oracle.dataobj))
    assert (pixels.kind, len(np.unique(pixels.labels))) == ("dicom", 9)


def test_mask_on_the_grid_of_the_series_is_taken_over_and_beyond_it_is_0(
    make_zip: Any, make_nifti: Any, slices: Any
) -> None:
    series = slices([0, 3, 6, 9])
    grid = decode(make_zip(series)).affine[:, [2, 1, 0, 3]]
    labels = np.random.default_rng(1).integers(0, 9, (20, 16, 4)).astype(np.uint8)
    np.testing.assert_array_equal(decode(make_zip([*series, make_nifti(labels, grid)])).labels, labels.T)
    found = decode(make_zip([*series, make_nifti(labels[:, :, :2], grid)])).labels
    np.testing.assert_array_equal(found[:2], labels.T[:2])
    assert not found[2:].any()


@pytest.mark.parametrize(
    ("places", "tags", "text"),
    [
        ([0, 3, 9, 12], {}, "1 slice is missing"),
        ([0], {}, "do not say where they lie"),
        ([0, 3, 6], {"PixelSpacing": None}, "do not say where they lie"),
    ],
)
def test_mask_cannot_be_laid_on_slices_without_a_grid(
    make_zip: Any, make_nifti: Any, slices: Any, mask: Any, places: Any, tags: Any, text: str
) -> None:
    error = refusal(make_zip([*slices(places, **tags), make_nifti(mask, AFFINE)]))
    assert error.code == 422
    assert text in error.message


def test_scan_beside_a_series_is_no_mask(make_zip: Any, make_nifti: Any, slices: Any, scan: Any) -> None:
    error = refusal(make_zip([*slices([0, 3, 6]), make_nifti(scan, AFFINE)]))
    assert (error.code, error.message) == (422, "the NIfTI file beside the series is no label mask")


def test_mask_of_another_place_is_422(make_zip: Any, make_nifti: Any, slices: Any, mask: Any) -> None:
    far = AFFINE.copy()
    far[2, 3] = 5000
    error = refusal(make_zip([*slices([0, 3, 6]), make_nifti(mask, far)]))
    assert (error.code, error.message) == (422, "no label of the mask lies within the series")


def test_half_a_voxel_beyond_the_edge_still_belongs_to_it() -> None:
    labels = np.ones((1, 1, 1), np.int32)
    fine = np.diag([0.2, 1, 1, 1])
    fine[0, 3] = -0.9
    assert resample(labels, np.eye(4), fine, (9, 1, 1)).ravel().tolist() == [0, 0, 1, 1, 1, 1, 1, 0, 0]


def test_real_ct_with_its_vertebrae(real_data: Any, make_zip: Any) -> None:
    folder = real_data("spine_ct")
    files = [folder / "example_ct_vertebrae_labels.nii.gz", folder / "example_ct.nii.gz"]
    pixels = decode(make_zip(path.read_bytes() for path in files))
    labels = nibabel.as_closest_canonical(nibabel.load(files[0])).get_fdata()
    for label in np.unique(labels)[1:]:
        found = pixels.array[pixels.labels == label]
        assert len(found) == (labels == label).sum()
        assert 50 < np.median(found) < 600  # HU of vertebrae: spongy bone
    error = refusal(make_zip(path.read_bytes() for path in sorted(folder.glob("*_msk.nii.gz"))))
    assert error.message == "either NIfTI file may be the label mask"
