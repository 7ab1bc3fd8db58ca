from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from torch import from_numpy
from torch.nn import functional as F

from medad_serve.errors import InputError
from medad_serve.io import Pixels
from medad_serve.prep import check_input, prepare
from medad_serve.prep.geometry import resize_volume
from medad_serve.spec import Foreground, InputSpec, Percentiles, PrepSpec, Regions, Window

UNIT = Window(center=0.5, width=1, function="LINEAR_EXACT")
CUBE = PrepSpec(window=UNIT, size=(8, 8, 8))


def _volume(shape: tuple[int, ...] = (16, 16, 16), seed: int = 0) -> Pixels:
    return Pixels(np.random.default_rng(seed).random(shape, np.float32), "array")


def test_a_volume_is_one_item_averaged_like_torch() -> None:
    pixels = _volume((16, 24, 32))
    prepared = prepare(pixels, PrepSpec(window=UNIT, size=(8, 8, 8)))
    expected = F.adaptive_avg_pool3d(from_numpy(pixels.array)[None], (8, 8, 8)).numpy()
    assert prepared.tensor.shape == (1, 1, 8, 8, 8)
    np.testing.assert_allclose(prepared.tensor[0], expected, atol=1e-6)


def test_a_volume_of_the_models_size_is_left_as_it_is() -> None:
    pixels = _volume((8, 8, 8))
    np.testing.assert_allclose(prepare(pixels, CUBE).tensor[0, 0], pixels.array, atol=1e-6)


def test_a_map_comes_back_at_the_size_of_the_source() -> None:
    prepared = prepare(_volume((16, 24, 32)), CUBE)
    heat = np.zeros((8, 8, 8), np.float32)
    heat[2, 3, 4] = 1
    there = prepared.geometries[0].to_source(heat)
    assert there.shape == (16, 24, 32)
    place = np.unravel_index(there.argmax(), there.shape)
    # voxel i of 8 covers source voxels [i * k, (i + 1) * k)
    assert [p * 8 // s for p, s in zip(place, there.shape, strict=True)] == [2, 3, 4]


def test_resizing_there_and_back_keeps_a_smooth_volume() -> None:
    axes = np.meshgrid(*[np.linspace(0, 1, 16)] * 3, indexing="ij")
    ramp = np.asarray(sum(axes), np.float32)
    back = resize_volume(resize_volume(ramp, (8, 8, 8)), (16, 16, 16))
    np.testing.assert_allclose(back[2:-2, 2:-2, 2:-2], ramp[2:-2, 2:-2, 2:-2], atol=1e-5)


def test_each_region_of_a_labelled_scan_is_an_item_whose_map_lands_on_it() -> None:
    array = np.full((40, 60, 60), -1000, np.float32)
    labels = np.zeros(array.shape, np.int32)
    for label, (z, y, x) in {20: (28, 30, 30), 21: (10, 20, 40)}.items():
        block = np.s_[z - 4 : z + 4, y - 6 : y + 6, x - 6 : x + 6]
        array[block], labels[block] = 400, label
    affine = np.array([[0, 0, -1.0, 0], [0, -1, 0, 0], [2, 0, 0, 0], [0, 0, 0, 1]])
    pixels = Pixels(array, "nifti", affine=affine, labels=labels)
    spec = PrepSpec(
        window=UNIT, size=(32, 32, 32), regions=Regions(size=(32, 32, 32), window=Window(center=300, width=1500))
    )
    prepared = prepare(pixels, spec)
    assert prepared.tensor.shape == (2, 1, 32, 32, 32)
    assert prepared.regions == ("L1", "L2")
    for index, label in enumerate((20, 21)):
        on_source = prepared.geometries[index].to_source(prepared.tensor[index, 0])
        assert on_source.shape == array.shape
        bone = on_source > 0.5
        assert (labels[bone] == label).mean() > 0.95
        assert bone.sum() == pytest.approx((labels == label).sum(), rel=0.35)


def _refused(pixels: Pixels, spec: InputSpec, prep: PrepSpec) -> InputError:
    with pytest.raises(InputError) as caught:
        check_input(pixels, spec, prep)
    assert caught.value.code == 422
    return caught.value


def test_an_uncropped_scan_is_refused_with_what_to_do() -> None:
    spec = InputSpec(size=(8, 8, 8), values=(0.0, 1.0), hint="Crop it first")
    wrong_size = _refused(_volume((16, 8, 8)), InputSpec(min_size=4, size=(8, 8, 8), hint="Crop it first"), CUBE)
    assert str(wrong_size) == "the volume is 16x8x8, the model reads 8x8x8. Crop it first"
    hounsfield = Pixels(_volume((8, 8, 8)).array * 1000, "array")
    assert "outside 0 to 1" in str(_refused(hounsfield, spec.model_copy(update={"min_size": 4}), CUBE))
    assert "single image" in str(_refused(_volume((1, 16, 16)), InputSpec(), CUBE))


def test_a_scan_with_its_mask_needs_no_cropping() -> None:
    pixels = Pixels(_volume((16, 16, 16)).array * 1000, "nifti", labels=np.ones((16, 16, 16), np.int32))
    prep = CUBE.model_copy(update={"regions": Regions(window=Window(center=300, width=1500))})
    check_input(pixels, InputSpec(size=(8, 8, 8), values=(0.0, 1.0)), prep)
    with pytest.raises(InputError, match="states its spacing"):
        prepare(pixels, prep)  # the grid of the mask means nothing without an affine


def test_percentiles_become_the_ends_of_the_scale() -> None:
    image = np.random.default_rng(0).normal(100, 20, (1, 64, 64)).astype(np.float32)
    spec = PrepSpec(window=Window(center=128, width=400), normalize=Percentiles(low=2, high=98), size=(64, 64))
    tensor = prepare(Pixels(image, "image"), spec).tensor[0, 0]
    low, high = np.percentile(image, [2, 98])
    np.testing.assert_allclose(tensor, np.clip((image[0] - low) / (high - low), 0, 1), atol=1e-4)


def test_brightness_and_contrast_vanish_under_percentiles() -> None:
    image = np.random.default_rng(0).random((1, 64, 64), np.float32) * 100
    spec = PrepSpec(window=Window(center=250, width=1000), normalize=Percentiles(), size=(32, 32))
    plain, changed = (prepare(Pixels(v, "image"), spec).tensor for v in (image, image * 0.5 + 30))
    np.testing.assert_allclose(plain, changed, atol=1e-4)


def test_foreground_is_cropped_and_its_map_goes_back() -> None:
    image = np.zeros((1, 100, 120), np.float32)
    image[0, 30:70, 50:90] = 1
    spec = PrepSpec(window=UNIT, foreground=Foreground(threshold=0.5, margin=0), size=(40, 40))
    prepared = prepare(Pixels(image, "image"), spec)
    assert prepared.tensor.mean() > 0.9
    on_source = prepared.geometries[0].to_source(np.ones((40, 40), np.float32))
    assert on_source.shape == (100, 120)
    assert (on_source > 0)[30:70, 50:90].all()
    assert (on_source > 0).sum() < 50 * 50


def test_smoothing_is_gaussian_in_source_pixels() -> None:
    image = np.random.default_rng(0).random((1, 64, 64), np.float32)
    spec = PrepSpec(window=UNIT, smooth_sigma=2.0, size=(64, 64))
    expected = gaussian_filter(image[0], 2.0, mode="mirror", truncate=4)
    np.testing.assert_allclose(prepare(Pixels(image, "image"), spec).tensor[0, 0], expected, atol=2e-3)
