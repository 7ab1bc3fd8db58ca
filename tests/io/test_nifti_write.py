"""Maps written as NIfTI: nibabel finds every voxel where it was in the patient."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from nibabel.affines import apply_affine

from medad_serve.errors import InputError
from medad_serve.io import decode
from medad_serve.io.nifti import write_nifti

ORIENTATIONS = ["RAS", "LPS", "PIR", "SAL", "IRP"]


@pytest.fixture
def voxels() -> Any:
    return np.random.default_rng(0).random((4, 5, 6), np.float32)


def oriented(codes: str) -> Any:
    """An oblique affine whose axes run nearest to ``codes``."""
    oblique = nibabel.eulerangles.euler2mat(0.1, 0.2, -0.1) @ np.diag([0.8, 1.5, 3.0])
    there = nibabel.orientations.axcodes2ornt(codes)
    affine = np.eye(4)
    for axis, (world, sign) in enumerate(there):
        affine[:3, axis] = oblique[:, int(world)] * sign
    affine[:3, 3] = 7, -8, 9
    return affine


@pytest.mark.parametrize("name", ["map.nii", "map.nii.gz"])
def test_map_is_read_back_with_its_affine(tmp_path: Path, voxels: Any, name: str) -> None:
    affine = oriented("SPL")
    write_nifti(tmp_path / name, voxels, affine)
    image = nibabel.load(tmp_path / name)
    for index in [(0, 0, 0), (3, 1, 2), (2, 4, 5)]:
        assert image.get_fdata()[index[::-1]] == voxels[index]
        np.testing.assert_allclose(apply_affine(image.affine, index[::-1]), apply_affine(affine, index), atol=1e-5)
    pixels = decode(tmp_path / name)
    np.testing.assert_array_equal(pixels.array, voxels)
    np.testing.assert_allclose(pixels.affine, affine, atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("codes", ORIENTATIONS)
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("shape", [(5, 6, 7), (5, 6, 1), (5, 1, 7), (5, 6), (5, 6, 7, 1)])
def test_map_like_its_source_has_its_shape_and_affine_exactly(
    tmp_path: Path, make_nifti: Any, codes: str, kind: Any, shape: tuple[int, ...]
) -> None:
    array = np.random.default_rng(0).integers(-1000, 1000, shape).astype(np.int16)
    source = tmp_path / "source.nii.gz"
    source.write_bytes(gzip.compress(make_nifti(array, oriented(codes), kind)))
    pixels = decode(source)
    write_nifti(tmp_path / "map.nii", pixels.array * 2, pixels.affine, like=source)
    found, expected = nibabel.load(tmp_path / "map.nii"), nibabel.load(source)
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found.affine, expected.affine)
    np.testing.assert_array_equal(found.get_fdata(), array * 2.0)
    assert type(found) is type(expected)


def test_sform_qform_and_units_are_those_of_the_source(tmp_path: Path, make_nifti: Any) -> None:
    image = nibabel.Nifti1Image(np.zeros((2, 3, 4), np.int16), None)
    image.set_qform(nibabel.affines.from_matvec(np.diag([-1.0, 2, 3]), [4, 5, 6]), code=1)
    image.set_sform(oriented("LAS"), code=4)
    image.header.set_xyzt_units("micron")
    nibabel.save(image, tmp_path / "source.nii")
    pixels = decode(tmp_path / "source.nii")
    write_nifti(tmp_path / "map.nii.gz", pixels.array, pixels.affine, like=tmp_path / "source.nii")
    found, expected = nibabel.load(tmp_path / "map.nii.gz").header, nibabel.load(tmp_path / "source.nii").header
    for form in ("get_sform", "get_qform"):
        (one, code), (other, wanted) = getattr(found, form)(coded=True), getattr(expected, form)(coded=True)
        np.testing.assert_array_equal(one, other)
        assert code == wanted
    assert found.get_xyzt_units() == expected.get_xyzt_units()
    assert found.get_zooms() == expected.get_zooms()


def test_texts_and_extensions_of_the_source_are_not_copied(tmp_path: Path, make_nifti: Any, secret: str) -> None:
    source = tmp_path / "source.nii"
    source.write_bytes(make_nifti(np.zeros((2, 3, 4), np.int16), np.eye(4)))
    assert secret.encode() in source.read_bytes()
    write_nifti(tmp_path / "map.nii", np.zeros((4, 3, 2), np.float32), np.eye(4), like=source)
    assert secret.encode() not in (tmp_path / "map.nii").read_bytes()


def test_map_of_another_shape_is_refused_and_nothing_is_left(tmp_path: Path, make_nifti: Any, voxels: Any) -> None:
    source = tmp_path / "source.nii"
    source.write_bytes(make_nifti(np.zeros((2, 3, 4), np.int16), np.eye(4)))
    with pytest.raises(InputError, match="another shape"):
        write_nifti(tmp_path / "map.nii", voxels, np.eye(4), like=source)
    source.write_bytes(b"no NIfTI")
    with pytest.raises(InputError, match="no NIfTI"):
        write_nifti(tmp_path / "map.nii", voxels, np.eye(4), like=source)
    assert [path.name for path in tmp_path.iterdir()] == ["source.nii"]


def test_map_without_an_affine_says_that_it_has_none(tmp_path: Path, voxels: Any) -> None:
    write_nifti(tmp_path / "map.nii", voxels)
    header = nibabel.load(tmp_path / "map.nii").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (0, 0)
    with pytest.raises(InputError, match="no valid affine"):
        decode(tmp_path / "map.nii")


def test_equal_maps_are_equal_files(tmp_path: Path, voxels: Any) -> None:
    for name in ("a.nii.gz", "b.nii.gz"):
        write_nifti(tmp_path / name, voxels, oriented("SPL"))
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_real_ct_comes_back_onto_itself(tmp_path: Path, real_data: Any) -> None:
    for source in sorted(real_data("spine_ct").glob("*ct.nii.gz")):
        pixels = decode(source)
        write_nifti(tmp_path / "map.nii.gz", pixels.array, pixels.affine, like=source)
        found, expected = nibabel.load(tmp_path / "map.nii.gz"), nibabel.load(source)
        np.testing.assert_array_equal(found.affine, expected.affine)
        np.testing.assert_array_equal(found.get_fdata(), expected.get_fdata())
