from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from medad_serve.artifact import MANIFEST, load_manifest
from medad_serve.errors import MedadError
from medad_serve.predictor import Predictor
from medad_serve.runtime.probe import check_reproduces, probe, probe_items


@pytest.mark.parametrize("shape", [(1, 64, 64), (3, 30, 20), (1, 16, 24, 9)])
def test_made_up_items_are_blocks_within_the_range_and_always_the_same(shape: tuple[int, ...]) -> None:
    items = probe_items(shape, (-2.0, 3.0))
    assert items.shape == (2, *shape)
    assert items.dtype == np.float32
    assert -2 <= items.min() < items.max() <= 3
    assert np.array_equal(items, probe_items(shape, (-2.0, 3.0)))
    steps = np.diff(items[0, 0], axis=0)
    assert (steps == 0).all(axis=tuple(range(1, steps.ndim))).any(), "neighbours share a block"
    assert steps.any()


def test_rounding_passes_and_saturation_does_not() -> None:
    check_reproduces([1.0, 0.5], [1.0 + 1e-3, 0.5], "onnx/float32")
    check_reproduces([1.0, 0.5], [1.05, 0.5], "onnx/int8")
    for found, variant in (([1.0, 0.52], "onnx/float32"), ([1.0, 0.65], "onnx/int8"), ([1.0, np.nan], "onnx/int8")):
        with pytest.raises(MedadError, match=f"{variant} gives other scores here"):
            check_reproduces(found, [1.0, 0.5], variant)


def test_an_artifact_keeps_the_scores_of_its_machine_and_a_worker_checks_them(artifact: Path, tmp_path: Path) -> None:
    manifest = load_manifest(artifact)
    assert set(manifest.probes) == set(manifest.calibrations)
    predictor = Predictor.load(artifact)
    assert manifest.probes["onnx/float32"] == pytest.approx(
        probe(predictor.runtime, manifest.input_shape, manifest.prep.values)
    )
    predictor.warm_up()
    other = Path(shutil.copytree(artifact, tmp_path / "artifact"))
    text = json.loads((other / MANIFEST).read_text())
    text["probes"]["onnx/float32"] = [2 * score for score in text["probes"]["onnx/float32"]]
    (other / MANIFEST).write_text(json.dumps(text))
    with pytest.raises(MedadError, match=r"onnx/float32 gives other scores here than where it was calibrated \(by"):
        Predictor.load(other).warm_up()
