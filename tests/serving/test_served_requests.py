"""Every form of request over a real TorchServe: what it does to them on the way is its own."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pydicom
import pytest
from urllib3.filepost import encode_multipart_formdata

from medad_serve.io import decode
from medad_serve.predictor import Predictor, Result
from medad_serve.prep import prepare

pytestmark = pytest.mark.server
Post = Callable[..., httpx.Response]
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def post(head_client: httpx.Client) -> Post:
    """``post(path, **httpx arguments)``."""
    return head_client.post


@pytest.fixture(scope="module")
def predictor(artifact: Path) -> Predictor:
    return Predictor.load(artifact)


@pytest.fixture(scope="module")
def tensor(predictor: Predictor, dicom_files: list[Path]) -> np.ndarray:
    """Three heads, prepared."""
    prep = predictor.manifest.prep
    return np.concatenate([prepare(decode(path), prep).tensor for path in (*dicom_files[:2], dicom_files[-1])])


@pytest.fixture(scope="module")
def ge_series(real_data: Callable[[str], Path]) -> list[bytes]:
    """28 slices of a real scanner."""
    return [path.read_bytes() for path in sorted(real_data("head_ct_ge_series").glob("*.dcm"))]


def untimed(answer: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in answer.items() if key != "timing_ms"}


def zipped(files: list[bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        for index, content in enumerate(files):
            packed.writestr(f"{index}.dcm", content)
    return buffer.getvalue()


def sent(files: list[bytes]) -> dict[str, tuple[str, bytes]]:
    return {f"slice{index}": ("IM", content) for index, content in enumerate(files)}


def test_a_series_sent_as_parts_is_answered_as_its_zip(
    post: Post, predictor: Predictor, ge_series: list[bytes]
) -> None:
    assert len(ge_series) == 28
    raw = {"Content-Type": "application/octet-stream"}
    by_zip = post("/predictions/head", content=zipped(ge_series), headers=raw)
    by_parts = post("/predictions/head", files=sent(ge_series[::-1]))
    assert (by_zip.status_code, by_parts.status_code) == (200, 200)
    zipped_slices, parts_slices = by_zip.json()["slices"], by_parts.json()["slices"]
    assert sorted(part["source"] for part in zipped_slices) == [*range(28)]
    for one, other in zip(zipped_slices, parts_slices, strict=True):
        assert one == {**other, "source": 27 - other["source"]}
    assert {**untimed(by_parts.json()), "slices": zipped_slices} == untimed(by_zip.json())
    [here] = predictor.predict([tuple(ge_series)])
    assert isinstance(here, Result)
    assert untimed(by_zip.json()) == untimed(here.to_json())
    assert (here.level, len(here.slices or ())) == ("patient", 28)


def test_a_dicomweb_body_is_answered_as_its_parts(post: Post, dicom_files: list[Path]) -> None:
    files = [path.read_bytes() for path in dicom_files[:2]]
    body, form = encode_multipart_formdata([("f", ("f", content, "application/dicom")) for content in files])
    related = f'multipart/related; type="application/dicom"; {form.partition("; ")[2]}'
    answer = post("/predictions/head", content=body, headers={"Content-Type": related})
    assert answer.status_code == 200
    assert untimed(answer.json()) == untimed(post("/predictions/head", files=sent(files)).json())


def test_parts_that_share_a_name_are_400_and_not_half_a_series(post: Post, dicom_files: list[Path]) -> None:
    same = [("file", (path.name, path.read_bytes())) for path in dicom_files[:2]]
    answer = post("/predictions/head", files=same)
    assert answer.status_code == 400
    assert "share one name" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v2/models/head/infer", "/predictions/head"])
@pytest.mark.parametrize("binary", [False, True])
def test_an_infer_request_scores_as_the_predictor_does(
    post: Post, predictor: Predictor, tensor: np.ndarray, path: str, binary: bool
) -> None:
    described = {"name": "x", "shape": list(tensor.shape), "datatype": "FP32"}
    if binary:
        described["parameters"] = {"binary_data_size": tensor.nbytes}
        text = json.dumps({"id": "42", "inputs": [described]}).encode()
        body = text + tensor.astype("<f4").tobytes()
        headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(text))}
    else:
        body = json.dumps({"id": "42", "inputs": [{**described, "data": tensor.ravel().tolist()}]}).encode()
        headers = JSON
    answer = post(path, content=body, headers=headers)
    assert answer.status_code == 200
    assert (answer.json()["id"], answer.json()["model_name"]) == ("42", predictor.manifest.name)
    [here] = predictor.predict([tensor])
    assert isinstance(here, Result)
    assert here.slices is not None
    found = {output["name"]: output for output in answer.json()["outputs"]}
    assert found["score"]["data"] == pytest.approx([item.score for item in here.slices], rel=1e-6)
    assert found["p_value"]["data"] == [item.p_value for item in here.slices]
    assert found["anomalous"]["data"] == [item.anomalous for item in here.slices]
    assert [found[name]["shape"] for name in ("score", "p_value", "anomalous")] == [[3]] * 3


def test_a_tensor_of_another_shape_is_422_in_the_protocols_form(post: Post) -> None:
    data = {"name": "x", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [0.5] * 64}
    answer = post("/v2/models/head/infer", content=json.dumps({"inputs": [data]}), headers=JSON)
    assert answer.status_code == 422
    assert "the model reads Nx1x64x64" in answer.json()["error"]


def test_a_chest_film_to_the_head_model_is_422_with_the_reason(post: Post, dicom_files: list[Path]) -> None:
    ds = pydicom.dcmread(dicom_files[0])
    ds.Modality, ds.BodyPartExamined = "DX", "CHEST"
    buffer = io.BytesIO()
    ds.save_as(buffer)
    answer = post("/predictions/head", files={"film": ("f.dcm", buffer.getvalue())})
    assert answer.status_code == 422
    assert answer.json()["error"]["message"] == "the model reads CT, this is a modality DX"


def test_an_input_unlike_the_calibrations_is_answered_with_a_warning(post: Post, tensor: np.ndarray) -> None:
    data = {"name": "x", "shape": [1, *tensor.shape[1:]], "datatype": "FP32", "data": (1 - tensor[0]).ravel().tolist()}
    answer = post("/v2/models/head/infer", content=json.dumps({"inputs": [data]}), headers=JSON)
    assert answer.status_code == 200
    assert "far outside the inputs that the model was calibrated on" in answer.json()["parameters"]["warnings"]
