"""Heatmaps and policies over a real TorchServe, of one slice and of a series, beside what the graph says."""

from __future__ import annotations

import base64
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest

from medad_serve.calibration import p_value
from medad_serve.io import decode
from medad_serve.predictor import Predictor
from medad_serve.prep import prepare

pytestmark = pytest.mark.server
Ask = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def ask(head_client: httpx.Client) -> Ask:
    """``ask(body, **headers)``."""

    def post(body: bytes, **headers: str) -> tuple[int, dict[str, Any]]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        sent = {"Content-Type": "application/octet-stream"} | named
        answer = head_client.post("/predictions/head", content=body, headers=sent)
        return answer.status_code, answer.json()

    return post


@pytest.fixture(scope="module")
def predictor(artifact: Path) -> Predictor:
    return Predictor.load(artifact)


@pytest.fixture(scope="module")
def sources(dicom_files: list[Path]) -> dict[str, bytes]:
    """A slice, and two slices of one patient as a ZIP."""
    series = sorted(dicom_files[-1].parent.glob("*.dcm"))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        for path in series:
            packed.write(path, path.name)
    return {"slice": dicom_files[-1].read_bytes(), "series": buffer.getvalue()}


def _expected(predictor: Predictor, source: bytes) -> tuple[int, np.ndarray]:
    """Return which slice scores highest, and its map on the source, by the graph and OpenCV alone."""
    tensor = prepare(decode(source), predictor.manifest.prep).tensor
    found = predictor.runtime.run(tensor, ["score", "heatmap"])
    highest = int(np.argmax(found["score"]))
    return highest, cv2.resize(found["heatmap"][highest, 0], (128, 128), interpolation=cv2.INTER_LINEAR)


@pytest.mark.parametrize("kind", ["slice", "series"])
def test_a_heatmap_as_numbers_is_the_map_of_the_highest_slice(
    ask: Ask, predictor: Predictor, sources: dict[str, bytes], kind: str
) -> None:
    code, answer = ask(sources[kind], X_Medad_Heatmap="npy")
    highest, expected = _expected(predictor, sources[kind])
    assert (code, answer["heatmap"]["format"], answer["heatmap"]["frame"]) == (200, "npy", highest)
    found = np.load(io.BytesIO(base64.b64decode(answer["heatmap"]["data"])))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * float(expected.max()))


@pytest.mark.parametrize("kind", ["slice", "series"])
def test_a_heatmap_as_picture_lies_on_the_source(
    ask: Ask, predictor: Predictor, sources: dict[str, bytes], kind: str
) -> None:
    code, answer = ask(sources[kind], X_Medad_Heatmap="png")
    highest, expected = _expected(predictor, sources[kind])
    assert (code, answer["heatmap"]["frame"]) == (200, highest)
    picture = cv2.imdecode(np.frombuffer(base64.b64decode(answer["heatmap"]["data"]), np.uint8), cv2.IMREAD_COLOR)
    grey = np.clip((decode(sources[kind]).array[highest] - (40 - 0.5)) / (80 - 1) + 0.5, 0, 1) * 255
    cold = expected < 0.02 * predictor.calibration.heatmap_scale  # nearly transparent there
    assert cold.any()
    assert np.abs(picture.astype(float).mean(axis=2) - grey)[cold].max() < 6
    hot = expected > 0.5 * predictor.calibration.heatmap_scale
    assert hot.any()
    assert np.ptp(picture[hot].astype(float), axis=1).mean() > 20  # in colour


@pytest.mark.parametrize("kind", ["slice", "series"])
def test_the_policy_asked_for_decides(ask: Ask, predictor: Predictor, sources: dict[str, bytes], kind: str) -> None:
    level = predictor.calibration.item if kind == "slice" else predictor.calibration.patient
    for cutoff in level.cutoffs:
        code, answer = ask(sources[kind], X_Medad_Policy=cutoff.policy)
        assert (code, answer["policy"], answer["cutoff"]) == (200, cutoff.policy, cutoff.value)
        assert answer["anomalous"] is (answer["score"] >= cutoff.value)
        assert answer["p_value"] == p_value(answer["score"], np.array(level.normal_scores), level.n)
        assert len(answer.get("slices", ())) == (2 if kind == "series" else 0)
    code, answer = ask(sources[kind], X_Medad_Policy="sensitivity=0.123")
    assert code == 422
    assert all(cutoff.policy in answer["error"]["hint"] for cutoff in level.cutoffs)
