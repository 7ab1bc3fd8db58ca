from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.ndimage import distance_transform_cdt
from sklearn.metrics import roc_auc_score

from medad_serve.data import Sample, Table, load_prepared
from medad_serve.errors import MedadError
from medad_serve.evaluation import Subject, score, study
from medad_serve.evaluation.pixels import locate, pixel_section, read_source
from medad_serve.spec import InputSpec, PrepSpec

Make = Callable[..., Subject]


def _upscaled(tensor: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    return np.asarray(cv2.resize(tensor, size[::-1], interpolation=cv2.INTER_LINEAR))


def test_only_the_images_of_the_test_are_scored(make_subject: Make) -> None:
    subject = make_subject()
    scored = score(subject)
    assert {subject.data.samples[r].role for r in scored.rows} == {"test"}
    assert len(scored.rows) == 16


def test_heatmaps_are_held_against_masks_on_the_pixels_of_the_files(make_subject: Make, tiles: Path) -> None:
    subject = make_subject()
    scored = score(subject)
    located = locate(subject, scored)
    assert located is not None
    assert located.left_out == 1  # the crack without a mask
    values, truth = [], []
    for index in located.index:
        row = scored.rows[index]
        sample = subject.data.samples[row]
        size = cv2.imread(str(sample.path), cv2.IMREAD_UNCHANGED).shape
        mask = np.zeros(size) if sample.mask is None else cv2.imread(str(sample.mask), cv2.IMREAD_UNCHANGED)
        assert mask.shape == size
        values.append(_upscaled(np.array(subject.data.tensor[row, 0]), size).ravel())
        truth.append(mask.ravel() > 0)
    found = pixel_section(scored, located)
    exact = roc_auc_score(np.concatenate(truth), np.concatenate(values))
    assert found["auroc"]["value"] == pytest.approx(exact, abs=found["binning_error"] + 1e-6)
    assert found["images"] == 15
    assert found["regions"] == 9
    assert found["left_out"] == 1
    assert set(found["classes"]) == {"crack", "hole"}
    assert found["classes"]["hole"]["images"] == 5 + 6


def test_size_and_contrast_of_defects_are_measured(make_subject: Make) -> None:
    subject = make_subject()
    scored = score(subject)
    located = locate(subject, scored)
    assert located is not None
    for number, index in enumerate(located.index):
        sample = subject.data.samples[scored.rows[index]]
        place = int(sample.path.stem)
        if sample.mask is None:
            assert located.areas[number] == 0
            assert np.isnan(located.contrasts[number])
            continue
        assert located.areas[number] == pytest.approx((6 + place) ** 2 / ((50 + place) * (70 - place)))
        mask = cv2.imread(str(sample.mask), cv2.IMREAD_UNCHANGED) > 0
        away = distance_transform_cdt(~mask, "taxicab")
        image = _upscaled(np.array(subject.data.tensor[scored.rows[index], 0]), mask.shape)
        expected = image[mask].mean() - image[(away > 0) & (away <= 5)].mean()
        assert located.contrasts[number] == pytest.approx(abs(expected), abs=1e-5)
        if sample.kind == "hole":
            assert located.contrasts[number] == pytest.approx(0.12 * (place + 1), rel=0.4)


def test_contrast_is_a_share_of_the_range_whatever_black_and_white_become(make_subject: Make) -> None:
    subject = make_subject()
    plain = locate(subject, score(subject))
    low, high = -1.0, 3.0
    data = replace(subject.data, tensor=np.asarray(subject.data.tensor) * (high - low) + low)
    wide = replace(subject, data=data, prep=subject.prep.model_copy(update={"output_range": (low, high)}))
    scaled = locate(wide, score(wide))
    assert plain is not None
    assert scaled is not None
    np.testing.assert_allclose(scaled.contrasts, plain.contrasts, atol=1e-5)


def test_data_without_masks_keep_no_heatmaps(make_subject: Make) -> None:
    subject = make_subject()
    bare = replace(subject.data, samples=tuple(replace(s, mask=None) for s in subject.data.samples))
    scored = score(replace(subject, data=bare))
    assert scored.heatmaps is None
    assert locate(subject, scored) is None


def test_a_mask_of_the_whole_image_has_a_size_but_no_contrast(make_subject: Make, tmp_path: Path) -> None:
    subject = make_subject(("score", "heatmap", "severity"))
    samples = list(subject.data.samples)
    row = next(i for i, s in enumerate(samples) if s.mask)
    size = cv2.imread(str(samples[row].path), cv2.IMREAD_UNCHANGED).shape
    assert cv2.imwrite(str(tmp_path / "all.png"), np.ones(size, np.uint8))
    samples[row] = replace(samples[row], mask=tmp_path / "all.png")
    changed = replace(subject, data=replace(subject.data, samples=tuple(samples)))
    graded = {g.name: len(g.against) for g in study(changed, score(changed)).graded}
    assert (graded["area"], graded["contrast"]) == (9, 8)


def test_volumes_are_held_against_masks_of_their_voxels(tmp_path: Path, make_subject: Make) -> None:
    rng = np.random.default_rng(0)
    samples, volumes, masks = [], [], []
    for number in range(6):
        volume, mask = rng.random((9, 11, 14)).astype(np.float32) / 4, np.zeros((9, 11, 14), np.uint8)
        if number % 2:
            mask[2:5, 3:7, 4:9] = 1
            volume[mask > 0] += 0.5
        np.save(tmp_path / f"v{number}.npy", volume)
        np.save(tmp_path / f"m{number}.npy", mask)
        marked = tmp_path / f"m{number}.npy" if number % 2 else None
        samples.append(Sample(tmp_path / f"v{number}.npy", str(number), number % 2, mask=marked))
        volumes.append(volume)
        masks.append(mask)
    prep = PrepSpec(size=(9, 11, 14))
    data = load_prepared(Table(tuple(samples)), prep, InputSpec(min_size=4), root=tmp_path / "cache")
    subject = replace(make_subject(), data=data, prep=prep)
    scored = score(subject)
    located = locate(subject, scored)
    assert located is not None
    found = pixel_section(scored, located)
    exact = roc_auc_score(np.ravel(masks), np.ravel(volumes))
    assert found["auroc"]["value"] == pytest.approx(exact, abs=found["binning_error"] + 1e-6)
    assert found["regions"] == 3
    assert located.contrasts[1::2] == pytest.approx(0.5, abs=0.05)


def test_files_of_several_items_are_left_out(make_subject: Make) -> None:
    subject = make_subject()
    first = next(i for i, s in enumerate(subject.data.samples) if s.kind == "hole")
    samples = list(subject.data.samples)
    samples[first + 1] = replace(samples[first], patient="x")
    twice = replace(subject, data=replace(subject.data, samples=tuple(samples)))
    located = locate(twice, score(twice))
    assert located is not None
    assert located.left_out == 3


def test_a_mask_that_no_longer_fits_is_refused(make_subject: Make, tmp_path: Path) -> None:
    subject = make_subject()
    row = next(i for i, s in enumerate(subject.data.samples) if s.mask)
    samples = list(subject.data.samples)
    assert cv2.imwrite(str(tmp_path / "m.png"), np.ones((9, 9), np.uint8))
    samples[row] = replace(samples[row], mask=tmp_path / "m.png")
    with pytest.raises(MedadError, match=r"m\.png is 9 x 9"):
        read_source(replace(subject, data=replace(subject.data, samples=tuple(samples))), row)


def test_a_file_that_is_gone_is_named(make_subject: Make, tmp_path: Path) -> None:
    subject = make_subject()
    samples = (replace(subject.data.samples[0], path=tmp_path / "gone.png"), *subject.data.samples[1:])
    with pytest.raises(MedadError, match=r"gone\.png cannot be read again"):
        read_source(replace(subject, data=replace(subject.data, samples=samples)), 0)
