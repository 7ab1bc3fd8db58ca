"""Mutated volumes: pixels or an InputError, in bounded memory, silently."""

from __future__ import annotations

import gzip
import io
import tracemalloc
import warnings
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medad_serve.errors import InputError
from medad_serve.io import Limits, Pixels, decode

SMALL = Limits(max_bytes=2**20, max_values=2**18)
MOST = 16 * 2**20
"""Peak of a refusal or a volume within SMALL: some copies of 1 MiB as float64, and what libraries keep."""
FUZZ = settings(max_examples=150)


def saved(array: Any, version: tuple[int, int] = (1, 0)) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def npy_seeds() -> list[bytes]:
    array = np.arange(60).reshape(3, 4, 5)
    types = ("u1", "<i2", ">f4", "f8", "f2", "?")
    return [saved(array.astype(t)) for t in types] + [saved(np.asfortranarray(array[0]), (2, 0))]


def check(data: bytes, secret: str) -> None:
    tracemalloc.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result: Pixels | InputError = decode(data, SMALL)
    except InputError as error:
        result = error
    finally:
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert used < MOST
    if isinstance(result, InputError):
        assert result.code in (400, 413, 415, 422)
        assert secret not in str(result)
        assert result.__suppress_context__ or result.__context__ is None
        return
    assert result.array.dtype == np.float32
    assert not np.isinf(result.array).any()
    assert np.isfinite(result.facts.stored_range).all()
    assert result.facts.stored_range[0] < result.facts.stored_range[1]
    if result.affine is not None:
        assert np.isfinite(np.linalg.inv(result.affine)).all()


def mutated(seed: bytes, data: st.DataObject, within: int) -> bytes:
    found = bytearray(seed)
    edits = st.tuples(
        st.integers(0, min(within, len(seed)) - 1), st.sampled_from([0, 1, 127, 128, 255]) | st.integers(0, 255)
    )
    for at, value in data.draw(st.lists(edits, min_size=1, max_size=12)):
        found[at] = value
    return bytes(found[: data.draw(st.integers(0, len(found)))] if data.draw(st.booleans()) else found)


@FUZZ
@given(data=st.data())
def test_mutated_npy(npy_seeds: list[bytes], secret: str, data: st.DataObject) -> None:
    check(mutated(data.draw(st.sampled_from(npy_seeds)), data, 140), secret)


@pytest.fixture(scope="module")
def nifti_seeds(make_nifti: Any) -> list[bytes]:
    array = np.arange(60).reshape(3, 4, 5)
    first, second = nibabel.Nifti1Image, nibabel.Nifti2Image
    affine = np.diag([2.0, -3, 4, 1])
    return [
        make_nifti(array.astype("i2"), affine, first, scl_slope=2, scl_inter=-5),
        make_nifti(array.astype("f4"), affine, second),
        make_nifti(array.astype("u1"), affine, first, sform_code=0, qform_code=1),
        make_nifti(array.astype(">f8"), affine, first),
    ]


@FUZZ
@given(data=st.data())
def test_mutated_nifti(nifti_seeds: list[bytes], secret: str, data: st.DataObject) -> None:
    check(mutated(data.draw(st.sampled_from(nifti_seeds)), data, 560), secret)


@FUZZ
@given(data=st.data(), inside=st.booleans())
def test_mutated_gzip(nifti_seeds: list[bytes], secret: str, data: st.DataObject, inside: bool) -> None:
    seed = data.draw(st.sampled_from(nifti_seeds))
    check(gzip.compress(mutated(seed, data, 560)) if inside else mutated(gzip.compress(seed), data, 9999), secret)


@settings(FUZZ, max_examples=60)
@given(data=st.data())
def test_mutated_members_of_a_zip(
    nifti_seeds: list[bytes], make_zip: Any, make_dicom: Any, secret: str, data: st.DataObject
) -> None:
    mask, scan = mutated(nifti_seeds[2], data, 560), data.draw(st.sampled_from(nifti_seeds[:2]))
    place = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": [1, 1]}
    series = [make_dicom(np.ones((4, 5), np.int16), ImagePositionPatient=[0, 0, z], **place) for z in (0, 1, 2)]
    check(make_zip([mask, scan] if data.draw(st.booleans()) else [mask, *series]), secret)
