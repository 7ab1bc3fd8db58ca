"""NIfTI against nibabel: values, orientation, affine; and what is refused."""

from __future__ import annotations

import gzip
import itertools
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from nibabel.affines import apply_affine

from medad_serve.errors import InputError
from medad_serve.io import Limits, Pixels, decode

MakeNifti = Callable[..., bytes]
SIZES = (5, 6, 7)


def volume(dtype: Any = np.int16) -> Any:
    """Voxels that tell their index: 100 x + 10 y + z."""
    x, y, z = np.indices(SIZES)
    return (100 * x + 10 * y + z).astype(dtype)


def tilted(codes: str) -> Any:
    """An affine whose axes run nearest to ``codes``, turned by some degrees and with three spacings."""
    turn = nibabel.eulerangles.euler2mat(0.1, -0.15, 0.2)
    sides = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
    rows = [sides[code] for code in codes]
    affine = np.eye(4)
    for column, ((axis, sign), spacing) in enumerate(zip(rows, (0.8, 1.5, 3.0), strict=True)):
        affine[:3, column] = turn[:, axis] * sign * spacing
    affine[:3, 3] = 11, -22, 33
    return affine


def refusal(data: bytes, limits: Limits = Limits()) -> InputError:  # noqa: B008  frozen
    with pytest.raises(InputError) as error:
        decode(data, limits)
    assert "ZEBRA" not in str(error.value)
    return error.value


def canonical(data: bytes) -> tuple[Any, Any]:
    """The oracle: closest canonical (R, A, S) by nibabel, then S, P, L by plain slicing."""
    image = nibabel.as_closest_canonical(nibabel.Nifti1Image.from_bytes(data))
    return image.get_fdata().transpose(2, 1, 0)[:, ::-1, ::-1], image


@pytest.mark.parametrize(
    "codes",
    ["".join(c) for axes in itertools.permutations(("RL", "AP", "SI")) for c in itertools.product(*axes)],
)
def test_every_orientation_becomes_slices_up_rows_back_columns_left(make_nifti: MakeNifti, codes: str) -> None:
    data = make_nifti(volume(), tilted(codes))
    pixels = decode(data)
    expected, image = canonical(data)
    np.testing.assert_array_equal(pixels.array, expected)
    assert pixels.affine is not None
    assert nibabel.aff2axcodes(pixels.affine) == ("S", "P", "L")
    for x, y, z in [(0, 0, 0), (4, 0, 3), (2, 5, 6)]:  # a landmark keeps its place in the patient
        voxel = tuple(np.argwhere(pixels.array == 100 * x + 10 * y + z)[0])
        np.testing.assert_allclose(
            apply_affine(pixels.affine, voxel), apply_affine(tilted(codes), (x, y, z)), atol=1e-5
        )
    assert pixels.spacing_mm == pytest.approx(image.header.get_zooms()[1::-1], rel=1e-6)


def test_plane_is_that_of_the_first_axial_slice_in_dicom_coordinates(make_nifti: MakeNifti) -> None:
    affine = np.diag([2.0, 2, 4, 1])
    affine[:3, 3] = -10, -20, 55
    pixels = decode(make_nifti(volume(), affine))
    assert (pixels.kind, pixels.spacing_mm) == ("nifti", (2, 2))
    assert pixels.facts.normal == (0, 0, 1)
    assert pixels.facts.position == 55


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8", ">i2", ">f4"])
def test_types_and_byte_orders_equal_nibabel(make_nifti: MakeNifti, dtype: str, kind: Any) -> None:
    array = volume("f8") % 100 - (0 if "u" in dtype else 40)
    data = make_nifti(array.astype(dtype), tilted("LPS"), kind)
    for found in (decode(data), decode(gzip.compress(data))):
        assert found.array.dtype == np.float32
        np.testing.assert_array_equal(found.array, kind.from_bytes(data).get_fdata().transpose(2, 1, 0))


def test_slope_and_intercept_rescale_values_and_range(make_nifti: MakeNifti) -> None:
    pixels = decode(make_nifti(volume("u1"), np.eye(4), scl_slope=0.5, scl_inter=-1000))
    assert pixels.facts.stored_range == (-1000, -872.5)
    np.testing.assert_array_equal(pixels.array[::, ::-1, ::-1].T, volume("u1") * 0.5 - 1000)


@pytest.mark.parametrize("slope", [0, np.nan])
def test_slope_that_is_none_changes_nothing(make_nifti: MakeNifti, slope: float) -> None:
    assert decode(make_nifti(volume(), np.eye(4), scl_slope=slope, scl_inter=7)).array.max() == 456


def test_range_of_floats_is_that_of_their_finite_values(make_nifti: MakeNifti) -> None:
    array = volume("f4") - 100
    array[0, 0, 0] = np.nan
    pixels = decode(make_nifti(array, np.eye(4)))
    assert pixels.facts.stored_range == (-99, 356)
    assert np.isnan(pixels.array).sum() == 1


def test_floats_within_0_and_1_keep_that_scale(make_nifti: MakeNifti) -> None:
    assert decode(make_nifti(volume("f4") / 1000, np.eye(4))).facts.stored_range == (0, 1)


@pytest.mark.parametrize(("code", "factor"), [(0, 1), (1, 1000), (2, 1), (3, 1e-3)])
def test_units_of_space_are_turned_into_mm(make_nifti: MakeNifti, code: int, factor: float) -> None:
    pixels = decode(make_nifti(volume(), np.diag([2.0, 3, 4, 1]), xyzt_units=code | 8))
    np.testing.assert_allclose(pixels.spacing_mm, (3 * factor, 2 * factor))


def test_qform_holds_where_there_is_no_sform(make_nifti: MakeNifti) -> None:
    image = nibabel.Nifti1Image(volume(), None)
    image.set_qform(tilted("RAS"), code=1)
    pixels = decode(image.to_bytes())
    expected = nibabel.as_closest_canonical(image).affine
    np.testing.assert_allclose(apply_affine(pixels.affine, (0, 5, 4)), expected[:3, 3], atol=1e-4)


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 1), (5, 6, 1, 1)])
def test_image_of_two_axes_is_one_frame(make_nifti: MakeNifti, shape: tuple[int, ...]) -> None:
    array = volume()[:, :, 0].reshape(shape)
    pixels = decode(make_nifti(array, np.diag([-1.0, -1, 1, 1])))
    np.testing.assert_array_equal(pixels.array, array.reshape(5, 6).T[None])


@pytest.mark.parametrize(("axis", "axes"), [(0, "LIP"), (1, "PIL"), (2, "SPL")])
def test_single_slice_is_shown_as_it_is_read(make_nifti: MakeNifti, axis: int, axes: str) -> None:
    pixels = decode(make_nifti(volume().take([2], axis), np.eye(4)))
    assert pixels.frames == 1
    assert nibabel.aff2axcodes(pixels.affine) == tuple(axes)


def test_fourth_axis_of_one_is_dropped_and_more_is_refused(make_nifti: MakeNifti) -> None:
    array = volume()[..., None]
    assert decode(make_nifti(array, np.eye(4))).array.shape == (7, 6, 5)
    error = refusal(make_nifti(np.repeat(array, 2, 3), np.eye(4)))
    assert (error.code, error.message) == (422, "the NIfTI file holds several volumes")


def bad_affine(value: float) -> dict[str, Any]:
    return {"srow_x": [value, 0, 0, 0]}


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"sform_code": 0, "qform_code": 0}, "sform_code and qform_code are both 0"),
        (bad_affine(0), "sform is singular"),
        (bad_affine(np.nan), "sform is singular or not finite"),
        (bad_affine(np.inf), "not finite"),
        ({"srow_x": [0, 1, 0, 0]}, "sform is singular"),
        ({"sform_code": 0, "qform_code": 1, "pixdim": [1, 0, 1, 1, 0, 0, 0, 0]}, "qform is singular"),
        ({"sform_code": 0, "qform_code": 1, "quatern_b": 3}, "qform is singular"),
        ({"sform_code": 0, "qform_code": 1, "quatern_b": np.nan}, "qform is singular"),
    ],
)
def test_file_without_a_valid_affine_is_422_and_says_what_to_do(
    make_nifti: MakeNifti, fields: dict[str, Any], text: str
) -> None:
    error = refusal(make_nifti(volume(), np.eye(4), **fields))
    assert error.code == 422
    assert "no valid affine" in error.message
    assert text in error.message
    assert "sform or qform" in error.hint


@pytest.mark.parametrize("dtype", [[("R", "u1"), ("G", "u1"), ("B", "u1")], "c8"])
def test_colour_and_complex_voxels_are_415(make_nifti: MakeNifti, dtype: Any) -> None:
    assert refusal(make_nifti(np.zeros(SIZES, dtype), np.eye(4))).code == 415


def test_header_of_a_pair_and_unknown_voxel_types_are_415(make_nifti: MakeNifti) -> None:
    assert "without its voxels" in refusal(make_nifti(volume(), np.eye(4)).replace(b"n+1\0", b"ni1\0")).message
    second = make_nifti(volume(), np.eye(4), nibabel.Nifti2Image).replace(b"n+2\0", b"ni2\0")
    assert refusal(second).code == 415
    for code in (1, 1536, 77):  # bits, extended floats, nothing
        assert refusal(make_nifti(volume(), np.eye(4), datatype=code)).code == 415


def test_infinite_values_are_422(make_nifti: MakeNifti) -> None:
    array = volume("f4")
    array[1, 1, 1] = np.inf
    assert refusal(make_nifti(array, np.eye(4))).code == 422
    assert refusal(make_nifti(volume("f8") * 1e300, np.eye(4))).code == 422
    assert refusal(make_nifti(volume("u1"), np.eye(4), scl_slope=3e38, scl_inter=0)).code == 422


def test_intercept_that_swallows_all_values_is_422(make_nifti: MakeNifti) -> None:
    error = refusal(make_nifti(volume(), np.eye(4), scl_slope=2, scl_inter=-1.4757e21))
    assert (error.code, error.message) == (422, "the rescale of the file makes all values equal")


def test_flat_floats_have_a_range_that_rises(make_nifti: MakeNifti) -> None:
    for value in (7, -3e30):
        low, high = decode(make_nifti(np.full(SIZES, value, np.float32), np.eye(4))).facts.stored_range
        assert low == np.float32(value) < high


def peak(data: bytes, limits: Limits) -> tuple[InputError, int]:
    refusal(data, limits)  # what is imported on the way does not count
    tracemalloc.start()
    try:
        return refusal(data, limits), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_declared_size_is_refused_before_it_is_allocated(make_nifti: MakeNifti, pack: Any) -> None:
    data = make_nifti(np.zeros((1, 1, 1), np.uint8), np.eye(4), dim=[3, 512, 512, 30000, 1, 1, 1, 1])
    error, used = peak(pack(data), Limits())
    assert error.code == 413
    assert used < 2**20


def test_gzip_that_holds_less_than_it_declares_costs_what_it_holds(make_nifti: MakeNifti) -> None:
    data = make_nifti(np.zeros((1, 1, 1), np.uint8), np.eye(4), dim=[3, 512, 512, 400, 1, 1, 1, 1])
    error, used = peak(gzip.compress(data), Limits())
    assert error.code == 400
    assert used < 2**22


@pytest.mark.parametrize("where", ["voxels", "after"])
def test_gzip_bomb_is_413_and_never_held(make_nifti: MakeNifti, where: str) -> None:
    shape = (256, 256, 256) if where == "voxels" else (4, 4, 4)
    data = make_nifti(np.zeros(shape, np.uint8), np.eye(4)) + bytes(2**24)
    error, used = peak(gzip.compress(data, 9), Limits(max_bytes=2**23))
    assert error.code == 413
    assert "inflates to more than" in error.message
    assert used < 2**22 + 2**20


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_cut_short_is_400(make_nifti: MakeNifti, pack: Any) -> None:
    data = make_nifti(volume(), np.eye(4))
    for end in (len(data) - 1, len(data) // 2, 350):
        assert refusal(pack(data[:end])).code == 400


def test_damaged_gzip_is_400(make_nifti: MakeNifti) -> None:
    data = bytearray(gzip.compress(make_nifti(volume(), np.eye(4))))
    assert refusal(bytes(data[:-9])).code == 400
    data[-6] ^= 1  # the sum
    assert refusal(bytes(data)).code == 400


def test_gzip_of_several_members_is_read(make_nifti: MakeNifti) -> None:
    data = make_nifti(volume(), np.eye(4))
    packed = gzip.compress(data[:400]) + gzip.compress(data[400:])
    assert decode(packed).array.sum() == volume().sum()


def test_voxels_within_the_header_are_refused(make_nifti: MakeNifti) -> None:
    assert refusal(make_nifti(volume(), np.eye(4), vox_offset=0)).code == 400


def test_path_is_read(tmp_path: Path, make_nifti: MakeNifti) -> None:
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(make_nifti(volume(), np.eye(4))))
    assert isinstance(decode(path), Pixels)


@pytest.mark.parametrize("name", ["example_ct.nii.gz", "sub-ct_label-22_ct.nii.gz"])
def test_real_ct_equals_nibabel_and_lies_where_it_lay(real_data: Callable[[str], Path], name: str) -> None:
    path = real_data("spine_ct") / name
    pixels, source = decode(path), nibabel.load(path)
    canonical_image = nibabel.as_closest_canonical(source)
    np.testing.assert_array_equal(pixels.array, canonical_image.get_fdata().transpose(2, 1, 0)[:, ::-1, ::-1])
    values = source.get_fdata()
    brightest = np.unravel_index(np.argmax(values), values.shape)
    here = np.unravel_index(np.argmax(pixels.array), pixels.array.shape)
    assert (values == values.max()).sum() == 1
    np.testing.assert_allclose(apply_affine(pixels.affine, here), apply_affine(source.affine, brightest), atol=1e-3)
    assert -1300 < pixels.array.min() < -900 < 1500 < pixels.array.max() < 4000  # HU of air and dense bone or metal


def test_nibabel_and_torch_are_loaded_where_a_volume_needs_them_alone() -> None:
    code = "import sys, medad_serve.predictor; print([m for m in ('torch', 'nibabel', 'scipy') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
