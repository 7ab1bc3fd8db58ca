from __future__ import annotations

import io
import tracemalloc
import warnings
from typing import Any

import numpy as np
import pytest
from numpy.lib import format as npy

from medad_serve.errors import InputError
from medad_serve.io import Limits, decode


def saved(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def header_alone(shape: tuple[int, ...], dtype: str = "<f4") -> bytes:
    buffer = io.BytesIO()
    npy.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def refusal(data: bytes, limits: Limits = Limits()) -> InputError:  # noqa: B008  frozen
    with pytest.raises(InputError) as error:
        decode(data, limits)
    return error.value


@pytest.fixture
def array() -> Any:
    return np.random.default_rng(0).integers(0, 120, (3, 4, 5))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8", ">i2", ">f8"])
def test_every_number_type_and_order_keeps_its_values(array: Any, dtype: str, order: str) -> None:
    typed = np.asarray(array.astype(dtype), order=order)
    for shown in (typed, np.asarray(typed[0], order=order)):
        pixels = decode(saved(shown))
        assert pixels.array.dtype == np.float32
        assert pixels.array.flags.c_contiguous
        np.testing.assert_array_equal(pixels.array, shown if shown.ndim == 3 else shown[None])
        assert (pixels.kind, pixels.affine, pixels.spacing_mm) == ("array", None, None)


@pytest.mark.parametrize(
    ("dtype", "expected"), [("?", (0, 1)), ("u1", (0, 255)), ("i2", (-32768, 32767)), ("f4", (-2, 3)), ("f8", (-2, 3))]
)
def test_range_is_that_of_the_type_or_of_the_floats(dtype: str, expected: tuple[float, float]) -> None:
    assert (
        decode(saved(np.array([[-2, 3]]).clip(0 if dtype == "u1" else -2).astype(dtype))).facts.stored_range == expected
    )


def test_floats_within_0_and_1_keep_that_scale() -> None:
    for values in ([[0.2, 0.4]], [[0, 1]], [[0.5, np.nan]], [[np.nan, np.nan]]):
        assert decode(saved(np.array(values, np.float32))).facts.stored_range == (0, 1)


def test_wide_integers_are_rounded_once() -> None:
    values = np.array([[2**24 + 1, 2**53 + 1]], np.int64)
    np.testing.assert_array_equal(decode(saved(values)).array[0], values.astype(np.float32))


@pytest.mark.parametrize("shape", [(), (5,), (1, 2, 3, 4)])
def test_other_numbers_of_axes_are_422(shape: tuple[int, ...]) -> None:
    error = refusal(saved(np.zeros(shape, np.float32)))
    assert error.code == 422
    assert f"has {len(shape)} axes" in error.message
    assert "(D, H, W)" in error.hint


@pytest.mark.parametrize("dtype", ["c8", "U3", "S3", "M8[s]", [("a", "f4")], "V2"])
def test_values_that_are_no_real_numbers_are_422(dtype: Any) -> None:
    assert refusal(saved(np.zeros((2, 3), dtype))).code == 422


class Poison:
    """An object that would tell of being unpickled."""

    def __reduce__(self) -> Any:
        return (pytest.fail, ("unpickled",))


def test_python_objects_are_415_and_never_unpickled() -> None:
    assert refusal(saved(np.array([[Poison()]], dtype=object))).code == 415


def test_infinite_values_are_422() -> None:
    assert refusal(saved(np.array([[np.inf, 0]]))).code == 422
    assert refusal(saved(np.array([[1e300, 0]]))).code == 422


def test_empty_volume_is_400() -> None:
    assert refusal(saved(np.zeros((0, 4, 4), np.float32))).code == 400


@pytest.mark.parametrize("shape", [(5000, 8, 8), (1, 2**14, 2**14), (600, 600, 600), (2**40, 2**40, 2**40)])
def test_declared_size_is_refused_before_it_is_allocated(shape: tuple[int, ...]) -> None:
    tracemalloc.start()
    error = refusal(header_alone(shape))
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert error.code == 413
    assert used < 2**20


def test_cut_short_is_400_and_allocates_nothing(array: Any) -> None:
    data = saved(array)
    for end in (len(data) - 1, 130, 60, 7):
        assert refusal(data[:end]).code == 400
    assert refusal(header_alone((400, 512, 512))).code == 400


def test_long_header_is_not_evaluated() -> None:
    text = b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"1," * 50000 + b")}\n"
    assert refusal(b"\x93NUMPY\x02\0" + len(text).to_bytes(4, "little") + text).code == 400


def test_newer_version_is_415() -> None:
    assert refusal(saved(np.zeros((2, 2))).replace(b"NUMPY\x01", b"NUMPY\x03", 1)).code == 415


def test_header_of_python_2_is_read_silently() -> None:
    data = saved(np.arange(6.0).reshape(2, 3)).replace(b"'shape': (2, 3), }  ", b"'shape': (2L, 3L), }")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        np.testing.assert_array_equal(decode(data).array[0], np.arange(6.0).reshape(2, 3))
    assert not caught
