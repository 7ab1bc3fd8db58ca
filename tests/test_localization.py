from __future__ import annotations

import time

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from medad_serve.localization import BINS, PixelTally, bin_edges, pixel_figures
from medad_serve.metrics import Resamples

Images = list[tuple[np.ndarray, np.ndarray]]


def _images(count: int = 8, size: int = 40, seed: int = 0, strength: float = 1.0) -> Images:
    """Noise heatmaps that are higher on the squares of their masks; every other image has none."""
    rng = np.random.default_rng(seed)
    out = []
    for index in range(count):
        mask = np.zeros((size, size + index), bool)
        for _ in range(rng.integers(1, 4) * (index % 2)):
            top, left, side = rng.integers(0, size - 12, 3)
            mask[top : top + 3 + side % 8, left : left + 3 + side % 6] = True
        heat = rng.normal(0, 1, mask.shape) + strength * mask * rng.uniform(0.3, 2)
        out.append((heat.astype(np.float32), mask))
    return out


def _tally(images: Images, bins: int = BINS) -> PixelTally:
    tally = PixelTally(bin_edges(np.concatenate([h.ravel() for h, _ in images]), bins))
    for heat, mask in images:
        tally.add(heat, mask)
    return tally


def _figures(images: Images, **options: object) -> dict:
    labels = [int(mask.any()) for _, mask in images]
    return pixel_figures(_tally(images), labels, [str(i) for i in range(len(images))], resamples=20, **options)


def _exact_auroc(images: Images) -> float:
    return float(
        roc_auc_score(np.concatenate([m.ravel() for _, m in images]), np.concatenate([h.ravel() for h, _ in images]))
    )


def _regions(mask: np.ndarray) -> list[np.ndarray]:
    """Flood-fill, corners included."""
    left = {tuple(p) for p in np.argwhere(mask)}
    found = []
    while left:
        stack, region = [left.pop()], np.zeros(mask.shape, bool)
        while stack:
            row, column = stack.pop()
            region[row, column] = True
            near = {(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            stack += near
        found.append(region)
    return found


def _naive_aupro(images: Images, limit: float = 0.3) -> float:
    """Every value as a threshold: the mean overlap of the regions over the false-positive rate, up to ``limit``."""
    regions = [np.sort(heat[region]) for heat, mask in images for region in _regions(mask)]
    normal = np.sort(np.concatenate([heat[~mask] for heat, mask in images]))
    fpr, pro = [0.0], [0.0]
    for threshold in np.unique(np.concatenate([h.ravel() for h, _ in images]))[::-1]:
        fpr.append(1 - np.searchsorted(normal, threshold) / len(normal))
        pro.append(float(np.mean([1 - np.searchsorted(r, threshold) / len(r) for r in regions])))
    at = np.linspace(0, limit, 200_001)
    return float(np.interp(at, fpr, pro).mean())


@pytest.mark.parametrize("strength", [0.0, 1.0, 4.0])
def test_pixel_auroc_is_that_of_sklearn_within_the_error_it_states(strength: float) -> None:
    images = _images(strength=strength)
    found = _figures(images)
    assert found["auroc"]["value"] == pytest.approx(_exact_auroc(images), abs=found["binning_error"] + 1e-7)
    assert found["binning_error"] < 1 / BINS


def test_the_stated_error_holds_for_coarse_bins_too() -> None:
    images = _images()
    tally = _tally(images, bins=8)
    found = pixel_figures(tally, [int(m.any()) for _, m in images], [str(i) for i in range(8)], resamples=2)
    gap = abs(found["auroc"]["value"] - _exact_auroc(images))
    assert 1e-5 < gap < tally.binning_error()


def test_heatmaps_of_few_values_are_measured_with_their_ties() -> None:
    images = [(np.round(heat), mask) for heat, mask in _images()]
    found = _figures(images)
    assert found["auroc"]["value"] == pytest.approx(_exact_auroc(images), abs=1e-6)


@pytest.mark.parametrize("strength", [0.5, 3.0])
def test_aupro_is_that_of_a_plain_sweep_over_every_value(strength: float) -> None:
    images = _images(strength=strength)
    found = _figures(images)
    assert found["aupro"]["value"] == pytest.approx(_naive_aupro(images), abs=1e-3)
    assert found["regions"] == sum(len(_regions(m)) for _, m in images)


def test_a_small_region_weighs_as_much_as_a_large_one() -> None:
    mask = np.zeros((100, 100), bool)
    mask[:10, :10] = mask[50:52, 50:52] = True
    heat = np.zeros((100, 100), np.float32)
    heat[:10, :10] = 1.0
    images = [(heat, mask)]
    # The large region is found before any false alarm; the small one rises with the rest of the image.
    assert _figures(images)["aupro"]["value"] == pytest.approx(0.5 + 0.5 * 0.3 / 2, abs=1e-6)


def test_a_volume_is_measured_by_its_connected_parts() -> None:
    rng = np.random.default_rng(0)
    mask = np.zeros((6, 20, 20), bool)
    mask[1:4, 3:6, 3:6] = mask[5, 15:, 15:] = True
    heat = (rng.normal(0, 1, mask.shape) + 2 * mask).astype(np.float32)
    found = _figures([(heat, mask)])
    assert found["regions"] == 2
    assert found["auroc"]["value"] == pytest.approx(roc_auc_score(mask.ravel(), heat.ravel()), abs=1e-3)


def test_intervals_are_those_of_images_drawn_by_patient() -> None:
    images = _images(count=12)
    labels = [int(m.any()) for _, m in images]
    patients = [f"p{i // 2}" for i in range(12)]
    found = pixel_figures(_tally(images), labels, patients, resamples=40, seed=5)
    weights = np.concatenate(list(Resamples(np.array(labels), patients, 40, 5)), axis=1).astype(int)
    drawn = [_exact_auroc([images[i] for i in np.repeat(np.arange(12), w)]) for w in weights.T]
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert found["auroc"]["low"] == pytest.approx(low, abs=2e-3)
    assert found["auroc"]["high"] == pytest.approx(high, abs=2e-3)


def test_a_class_is_measured_with_the_healthy_images() -> None:
    images = _images(count=8)
    classes = {"crack": np.arange(8) == 1, "hole": np.isin(np.arange(8), [3, 5, 7]), "none": np.zeros(8, bool)}
    found = _figures(images, classes=classes)
    assert set(found["classes"]) == {"crack", "hole"}
    crack = found["classes"]["crack"]
    part = [images[i] for i in (0, 1, 2, 4, 6)]
    assert crack["images"] == 5
    assert crack["auroc"]["value"] == pytest.approx(_exact_auroc(part), abs=1e-3)
    assert crack["aupro"]["value"] == pytest.approx(_naive_aupro(part), abs=2e-3)


def test_without_a_marked_pixel_nothing_is_told() -> None:
    images = [(heat, np.zeros_like(mask)) for heat, mask in _images(count=4)]
    found = _figures(images)
    assert found["auroc"]["value"] is None
    assert found["aupro"]["value"] is None


def test_hundreds_of_images_take_seconds() -> None:
    images = _images(count=60, size=300)
    tally = PixelTally(bin_edges(np.stack([h[:300, :300] for h, _ in images])))
    start = time.process_time()
    for heat, mask in images:
        tally.add(heat, mask)
    pixel_figures(tally, [int(m.any()) for _, m in images], [str(i) for i in range(60)])
    assert time.process_time() - start < 6
