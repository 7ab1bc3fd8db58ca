"""Which inputs are told to look like none of the calibration's."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from medad_serve.artifact import load_manifest, write_manifest
from medad_serve.errors import InputError
from medad_serve.io import decode
from medad_serve.models import family
from medad_serve.predictor import Predictor, Result
from medad_serve.prep import input_range, measure, prepare, unfamiliar
from medad_serve.prep.familiar import LAYOUT, PLAIN
from medad_serve.spec import PrepSpec, Standardize

PREP = PrepSpec(size=(32, 32))
Tensor = NDArray[np.float32]


def heads(count: int, seed: int = 0, prep: PrepSpec = PREP) -> Tensor:
    """Discs of varying size and grey on black, prepared as ``prep`` asks."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:32, :32] / 31 - 0.5
    radius = np.hypot(rows * rng.uniform(0.9, 1.1, (count, 1, 1)), columns * 1.2)
    discs = np.where(radius < rng.uniform(0.38, 0.45, (count, 1, 1)), rng.uniform(0.4, 0.5, (count, 1, 1)), 0.0)
    shown = np.clip(discs + (discs > 0) * rng.normal(0, 0.03, discs.shape), 0, 1)
    low, high = prep.values
    return (low + (high - low) * shown[:, None]).astype(np.float32)


def test_statistics_are_what_they_are_called() -> None:
    item = np.zeros((8, 16), np.float32)
    item[2:6, 4:12] = 1  # the inner half of rows and columns: white on black
    item[0, 0] = 0.5
    [values], [coarse] = measure(item[None, None], PrepSpec(size=(8, 16)))
    mean = (32 + 0.5) / 128
    # a step at each of the 8 + 8 border pixels of the rectangle's sides, and around the grey pixel
    down, across = (2 * 8 + 0.5) / (7 * 16), (2 * 4 + 0.5) / (8 * 15)
    expected = [mean, np.sqrt((32 + 0.25) / 128 - mean**2), 95 / 128, 32 / 128, down + across, 1 - mean]
    assert values == pytest.approx(expected, abs=1e-6)
    small = cv2.resize(item, (8, 8), interpolation=cv2.INTER_AREA).ravel()
    assert coarse @ small / np.linalg.norm(small - small.mean()) == pytest.approx(1)


@pytest.mark.parametrize("prep", [PREP, PrepSpec(size=(32, 32), standardize=Standardize(mean=0.5, std=0.25))])
def test_what_resembles_the_calibration_is_answered_without_a_word(prep: PrepSpec) -> None:
    known = input_range([measure(heads(30, prep=prep), prep), measure(heads(30, 1, prep), prep)])
    assert known is not None
    assert (known.n, set(known.ranges)) == (60, {*PLAIN, LAYOUT})
    assert unfamiliar(heads(100, 2, prep), prep, known) == ()


@pytest.mark.parametrize(
    ("change", "by"),
    [
        (lambda x: 1 - x, "brightness"),
        (lambda x: x * 0.3, "brightness"),
        (lambda x: np.minimum(x * 3, 1), "white"),
        (lambda x: x + np.random.default_rng(0).normal(0, 0.3, x.shape).astype(np.float32), "sharpness"),
        (lambda x: np.roll(x, 16, axis=3), "layout"),
        (lambda x: np.zeros_like(x), "contrast"),
    ],
)
def test_what_does_not_is_warned_of_by_name(change: Callable[[Tensor], Tensor], by: str) -> None:
    known = input_range([measure(heads(40), PREP)])
    [warning] = unfamiliar(change(heads(1, 5)), PREP, known)
    assert warning.startswith("the slice lies far outside")
    assert by in warning
    mixed = np.concatenate([heads(3, 6), change(heads(2, 7))])
    assert unfamiliar(mixed, PREP, known)[0].startswith("2 of 5 slices lie far outside")


def test_volumes_are_measured_whole() -> None:
    prep = PrepSpec(size=(6, 32, 32))
    stacks = np.repeat(heads(20)[:, :, None], 6, axis=2)
    known = input_range([measure(stacks, prep)])
    assert unfamiliar(stacks[:2], prep, known) == ()
    assert unfamiliar(1 - stacks[:1], prep, known)[0].startswith("the volume lies")


@pytest.mark.parametrize("shape", [(7, 12, 9), (12, 9), (1, 9), (5, 1)])
def test_statistics_are_those_of_numpy(shape: tuple[int, ...]) -> None:
    item = np.random.default_rng(0).random(shape).astype(np.float32)
    item[..., 0, 0], item[..., -1, -1] = 0, 1
    [values], _ = measure(item[None, None], PrepSpec(size=(12, 9)))
    steps = [np.abs(np.diff(item, axis=axis)) for axis in (-2, -1)]
    rows, columns = (slice(side // 4, side - side // 4) for side in shape[-2:])
    expected = [item.mean(), item.std(), (item <= 0.02).mean(), (item >= 0.98).mean()]
    expected += [sum(step.mean() for step in steps if step.size), item[..., rows, columns].mean() - item.mean()]
    assert values == pytest.approx(expected, rel=1e-5)


def test_few_items_state_no_range() -> None:
    assert input_range([measure(heads(9), PREP)]) is None
    assert input_range([measure(heads(0), PREP)]) is None
    assert unfamiliar(heads(1), PREP, None) == ()


def test_an_artifact_carries_the_range_and_an_old_one_does_without(
    artifact: Path, dicom_files: list[Path], tmp_path: Path
) -> None:
    manifest = load_manifest(artifact)
    for calibration in manifest.calibrations.values():
        assert calibration.inputs is not None
        assert calibration.inputs.n == calibration.item.n
    data = dicom_files[0].read_bytes()
    inverted = decode(data)
    [bad] = Predictor.load(artifact).predict([_saved(1000 - inverted.array[0], dicom_files[0])])
    assert isinstance(bad, Result)
    assert any("far outside" in warning for warning in bad.warnings)
    old = shutil.copytree(artifact, tmp_path / "old")
    text = json.loads((old / "medad.json").read_text())
    for calibration in text["calibrations"].values():
        del calibration["inputs"]
    for field in ("bits", "spacing_mm"):
        del text["input"][field]
    (old / "medad.json").write_text(json.dumps(text))
    assert load_manifest(old).calibrations["onnx/float32"].inputs is None
    [same] = Predictor.load(old).predict([_saved(1000 - inverted.array[0], dicom_files[0])])
    assert isinstance(same, Result)
    assert (same.score, same.warnings) == (bad.score, ())
    write_manifest(old, load_manifest(old))  # and may be written again


def _saved(values: NDArray[np.float32], like: Path) -> bytes:
    from io import BytesIO

    import pydicom

    ds = pydicom.dcmread(like)
    ds.PixelData = values.astype("<i2").tobytes()
    buffer = BytesIO()
    ds.save_as(buffer)
    return buffer.getvalue()


def readable(files: list[Path], prep: PrepSpec) -> Iterator[Tensor]:
    """What decodes, prepared: a lent file may be damaged, as those of a hospital may."""
    for path in files:
        with suppress(InputError):
            yield prepare(decode(path), prep).tensor


@pytest.mark.parametrize("kind", ["head", "chest"])
def test_false_warnings_on_real_healthy_images_are_rare(kind: str, real_data: Callable[[str], Path]) -> None:
    """Calibrated on half of the patients, held against the others; what is inverted is noticed."""
    if kind == "head":
        root, prep = real_data("head_ct_cq500"), family("ae").prep
        ids = sorted(root.glob("CQ500CT*"), key=lambda p: int(re.findall(r"\d+", p.name)[-1]))[70:]
        files = [path for p in ids for path in p.rglob("*.dcm")]
    else:
        root, prep = real_data("chest_xray"), family("efficientnet_b0").prep
        files = sorted((root / "train" / "NORMAL").glob("IM-*"))[::4]
    tensor = np.concatenate(list(readable(files, prep)))
    order = np.random.default_rng(0).permutation(len(tensor))
    calibration, rest = tensor[order[::2]], tensor[order[1::2]]
    known = input_range([measure(calibration, prep)])
    alarms = [bool(unfamiliar(item[None], prep, known)) for item in rest]
    assert len(rest) > 30, "too few files can be read"
    assert np.mean(alarms) <= 0.03
    inverted = sum(prep.values) - rest
    assert np.mean([bool(unfamiliar(item[None], prep, known)) for item in inverted]) > 0.95
