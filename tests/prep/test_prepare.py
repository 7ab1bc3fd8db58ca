from __future__ import annotations

import importlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.pixels import apply_windowing

from medad_serve.errors import InputError
from medad_serve.io import Facts, Pixels, decode
from medad_serve.prep import apply_window, check_input, display, prepare
from medad_serve.spec import InputSpec, PrepSpec, Window

BRAIN = Window(center=40, width=80)


def _pixels(array, **more) -> Pixels:
    array = np.asarray(array, np.float32)
    return Pixels(array[None] if array.ndim == 2 else array, "dicom", **more)


def _pydicom_window(values: np.ndarray, window: Window) -> np.ndarray:
    """pydicom scales to the stored range; its LINEAR result over that range is the [0, 1] answer."""
    ds = Dataset()
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.BitsStored, ds.PixelRepresentation = 16, 1
    ds.WindowCenter, ds.WindowWidth, ds.VOILUTFunction = window.center, window.width, window.function
    ds.RescaleSlope, ds.RescaleIntercept = 1, 0
    low, high = -(2**15), 2**15 - 1
    return (apply_windowing(values.astype(np.float64), ds) - low) / (high - low)


@pytest.mark.parametrize(
    "window",
    [
        BRAIN,
        Window(center=600, width=2800),
        Window(center=40, width=80, function="LINEAR_EXACT"),
        Window(center=40, width=80, function="SIGMOID"),
        Window(center=0.5, width=1),
    ],
    ids=str,
)
def test_window_equals_pydicom(window: Window) -> None:
    values = np.arange(-1100, 3200, 0.5, dtype=np.float32)
    assert apply_window(values, window) == pytest.approx(_pydicom_window(values, window), abs=2e-6)


def test_window_equals_highdicom() -> None:
    from highdicom.content import VOILUTTransformation

    values = np.arange(-200, 200, 0.25)
    expected = VOILUTTransformation(window_center=40, window_width=80).apply(values, output_range=(0.0, 1.0))
    assert apply_window(values.astype(np.float32), BRAIN) == pytest.approx(expected, abs=1e-6)


@given(st.floats(-3000, 3000), st.floats(1.5, 5000), st.floats(-4000, 4000))
def test_linear_window_by_the_formula_of_the_standard(center: float, width: float, value: float) -> None:
    x = np.float32(value)
    expected = np.clip((float(x) - (center - 0.5)) / (width - 1) + 0.5, 0, 1)
    assert apply_window(np.array([x]), Window(center=center, width=width))[0] == pytest.approx(expected, abs=5e-4)


def test_resize_equals_torch_area_interpolation() -> None:
    image = np.random.default_rng(0).uniform(0, 80, (512, 512)).astype(np.float32)
    made = prepare(_pixels(image), PrepSpec(window=BRAIN)).tensor
    shown = torch.from_numpy(apply_window(image, BRAIN))[None, None]
    expected = torch.nn.functional.interpolate(shown, (64, 64), mode="area").numpy()
    assert made == pytest.approx(expected, abs=1e-6)
    assert made.shape == (1, 1, 64, 64)
    assert made.dtype == np.float32


def test_small_images_are_scaled_up_bilinearly() -> None:
    image = np.random.default_rng(0).uniform(0, 80, (40, 40)).astype(np.float32)
    made = prepare(_pixels(image), PrepSpec(window=BRAIN)).tensor[0, 0]
    expected = cv2.resize(apply_window(image, BRAIN), (64, 64), interpolation=cv2.INTER_LINEAR)
    assert made == pytest.approx(expected, abs=1e-6)


def test_an_axis_that_shrinks_is_averaged_where_the_other_grows() -> None:
    image = np.random.default_rng(0).uniform(0, 80, (512, 32)).astype(np.float32)
    made = prepare(_pixels(image), PrepSpec(window=BRAIN)).tensor[0, 0]
    shown = apply_window(image, BRAIN).reshape(64, 8, 32).mean(axis=1)
    assert made == pytest.approx(cv2.resize(shown, (64, 64), interpolation=cv2.INTER_LINEAR), abs=1e-6)


@pytest.mark.parametrize("size", [(512, 512), (640, 512), (500, 333), (128, 64), (70, 900)])
@pytest.mark.parametrize("target", [(64, 64), (32, 48)])
def test_strips_equal_one_resize(
    size: tuple[int, int], target: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = _pixels(np.random.default_rng(1).uniform(-20, 100, size))
    made = prepare(pixels, PrepSpec(window=BRAIN, size=target)).tensor[0, 0]
    expected = cv2.resize(display(pixels, BRAIN)[0], target[::-1], interpolation=cv2.INTER_AREA)
    assert made == pytest.approx(expected, abs=1e-6)
    monkeypatch.setattr(importlib.import_module("medad_serve.prep.prepare"), "STRIPS", 1)
    assert np.array_equal(made, prepare(pixels, PrepSpec(window=BRAIN, size=target)).tensor[0, 0])


WINDOWS = [
    BRAIN,
    Window(center=600, width=2800),
    Window(center=3000, width=7),
    Window(center=30000, width=1001),
    Window(center=40, width=80, function="LINEAR_EXACT"),
    Window(center=40, width=80, function="SIGMOID"),
    Window(center=40, width=1),
]


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("target", [(64, 50), (32, 37), (31, 20), (16, 64, 50)])
@pytest.mark.parametrize("inverted", [False, True])
def test_it_is_pydicoms_window_averaged_over_areas(window: Window, target: tuple[int, ...], inverted: bool) -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(window.center, window.width, (32, 128, 100)).astype(np.float32)
    padding = rng.random(values.shape) < 0.1
    shown = np.clip(_pydicom_window(values, window), 0, 1)
    shown = np.where(padding, 0, 1 - shown if inverted else shown)
    if len(target) == 2:  # OpenCV once more, in float64
        expected = np.stack([cv2.resize(frame, target[::-1], interpolation=cv2.INTER_AREA) for frame in shown])
    else:
        expected = shown.reshape(16, 2, 64, 2, 50, 2).mean(axis=(1, 3, 5))
    pixels = _pixels(values, inverted=inverted, padding=padding)
    made = prepare(pixels, PrepSpec(window=window, size=target)).tensor
    assert made.reshape(expected.shape) == pytest.approx(expected, abs=2e-5)
    assert 0 <= made.min() <= made.max() <= 1


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_padding_alone_is_black(window: Window, inverted: bool) -> None:
    values = np.random.default_rng(1).uniform(2990, 3010, (8, 500, 500))
    pixels = _pixels(values, inverted=inverted, padding=np.ones(values.shape, bool))
    assert not display(pixels, window).any()
    for size in ((64, 64), (125, 100), (4, 32, 32)):
        assert prepare(pixels, PrepSpec(window=window, size=size)).tensor.max() <= 2e-6


@pytest.mark.parametrize("ends", [(-3.4e38, 100), (-1e38, 3e38), (-3.3e38, 3.3e38)])
def test_values_near_the_largest_do_not_overflow(ends: tuple[float, float]) -> None:
    values = np.random.default_rng(1).choice(ends, (128, 128)).astype(np.float32)
    facts = Facts(stored_range=ends)
    made = prepare(_pixels(values, facts=facts), PrepSpec(window=None, size=(32, 32))).tensor[0, 0]
    expected = (values == np.float32(ends[1])).reshape(32, 4, 32, 4).mean(axis=(1, 3))
    assert made == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "window",
    [
        Window(center=3000.5, width=1.0001),
        Window(center=3000, width=1e-4, function="LINEAR_EXACT"),
        Window(center=3000, width=3e-4, function="LINEAR_EXACT"),
    ],
    ids=str,
)
def test_a_window_narrower_than_float32_can_tell_is_a_step(window: Window) -> None:
    values = np.array([2998, 2999, 3001, 3002], np.float32)
    assert apply_window(values, window).tolist() == [0, 0, 1, 1]


def test_every_frame_is_prepared_on_its_own() -> None:
    frames = np.random.default_rng(0).uniform(0, 80, (3, 128, 128)).astype(np.float32)
    together = prepare(_pixels(frames), PrepSpec(window=BRAIN)).tensor
    for index in range(3):
        alone = prepare(_pixels(frames[index]), PrepSpec(window=BRAIN)).tensor[0]
        assert np.array_equal(together[index], alone)


def test_padding_outside_the_circle_becomes_the_window_floor() -> None:
    image = np.full((64, 64), 70, np.float32)
    padding = np.zeros((1, 64, 64), bool)
    padding[0, :8] = True
    made = prepare(_pixels(image, padding=padding), PrepSpec(window=BRAIN)).tensor[0, 0]
    assert (made[:8] == 0).all()
    assert (made[8:] > 0.8).all()


def test_monochrome1_is_turned_after_the_window_and_padding_stays_black() -> None:
    image = np.linspace(0, 80, 64 * 64, dtype=np.float32).reshape(64, 64)
    padding = np.zeros((1, 64, 64), bool)
    padding[0, 0] = True
    plain = prepare(_pixels(image), PrepSpec(window=BRAIN)).tensor[0, 0]
    turned = prepare(_pixels(image, inverted=True, padding=padding), PrepSpec(window=BRAIN)).tensor[0, 0]
    assert turned[1:] == pytest.approx(1 - plain[1:], abs=1e-6)
    assert (turned[0] == 0).all()


def test_without_a_window_the_stored_range_is_the_scale() -> None:
    facts = Facts(stored_range=(0, 255))
    made = prepare(_pixels(np.full((64, 64), 51), facts=facts), PrepSpec(window=None)).tensor
    assert made == pytest.approx(np.full((1, 1, 64, 64), 0.2), abs=1e-6)


def test_output_range_is_applied_last() -> None:
    image = np.linspace(0, 80, 64 * 64, dtype=np.float32).reshape(64, 64)
    unit = prepare(_pixels(image), PrepSpec(window=BRAIN)).tensor
    wide = prepare(_pixels(image), PrepSpec(window=BRAIN, output_range=(-1, 1))).tensor
    assert wide == pytest.approx(unit * 2 - 1, abs=1e-6)


def test_source_pixels_are_left_as_they_are() -> None:
    image = np.random.default_rng(0).uniform(-100, 100, (1, 64, 64)).astype(np.float32)
    before = image.copy()
    prepare(_pixels(image, inverted=True, padding=np.ones(image.shape, bool)), PrepSpec(window=BRAIN))
    assert np.array_equal(image, before)


@pytest.mark.parametrize("value", [np.nan])
def test_values_that_are_not_numbers_are_refused(value: float) -> None:
    image = np.zeros((512, 512), np.float32)
    image[100, 100] = value
    with pytest.raises(InputError) as caught:
        prepare(_pixels(image), PrepSpec(window=BRAIN))
    assert caught.value.code == 422


def test_colour_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        prepare(Pixels(np.zeros((1, 64, 64, 3), np.float32), "image"), PrepSpec())
    assert caught.value.code == 422


@pytest.mark.parametrize(
    ("facts", "spec", "says"),
    [
        (Facts(modality="CR"), InputSpec(modalities=("CT",)), "modality CR"),
        (Facts(), InputSpec(modalities=("CT",)), "without a modality"),
        (Facts(modality="CT", body_part="CHEST"), InputSpec(body_parts=("HEAD",)), "Body Part"),
        (Facts(), InputSpec(min_size=65), "64x64"),
    ],
)
def test_input_that_the_model_was_not_made_for_is_refused(facts: Facts, spec: InputSpec, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        check_input(_pixels(np.zeros((64, 64)), facts=facts), spec, PrepSpec())
    assert caught.value.code == 422


def test_heatmap_maps_back_onto_the_source() -> None:
    prepared = prepare(_pixels(np.zeros((100, 200))), PrepSpec(window=BRAIN))
    heat = np.zeros((64, 64), np.float32)
    heat[32:, :32] = 1
    on_source = prepared.geometries[0].to_source(heat)
    assert on_source.shape == (100, 200)
    assert on_source[90, 10] == 1
    assert on_source[10, 190] == 0


def test_display_of_a_real_slice_equals_pydicom(tmp_path: Path, make_ct, make_slice) -> None:
    ds = make_ct(make_slice(3))
    path = tmp_path / "a.dcm"
    ds.save_as(path)
    shown = display(decode(path), BRAIN)[0]
    assert shown == pytest.approx(_pydicom_window(ds.pixel_array, BRAIN), abs=2e-6)
