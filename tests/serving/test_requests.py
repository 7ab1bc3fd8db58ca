"""Rows and headers as TorchServe 0.12 was seen to hand them over."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from urllib3.filepost import encode_multipart_formdata

from medad_serve.errors import InputError
from medad_serve.io import Limits
from medad_serve.predictor import InputFacts, ItemResult, Result
from medad_serve.serving.oip import OipError
from medad_serve.serving.requests import Request, encode_answer, read_request, split_parts

FORM = "multipart/form-data; boundary=------------------------8c848e653284ed3c"
JSON = {"Content-Type": "application/json"}


def tensor_body(**changes: Any) -> bytes:
    tensor = {"name": "x", "shape": [2, 1, 2, 2], "datatype": "FP32", "data": [0, 0.5, 1, 0, 1, 1, 1, 0.25]}
    return json.dumps({"id": "a1", "inputs": [{**tensor, **changes}]}).encode()


def fault(row: dict[str, Any], headers: dict[str, Any], limits: Limits = Limits()) -> InputError:  # noqa: B008  frozen
    with pytest.raises(InputError) as error:
        read_request(row, headers, limits)
    return error.value


def result(items: int = 1, **more: Any) -> Result:
    each = tuple(ItemResult(index=i, score=0.1 * i, p_value=0.5, anomalous=i > 1) for i in range(items))
    return Result(
        model="m",
        version="2.0",
        level="patient" if items > 1 else "slice",
        score=0.7,
        p_value=0.05,
        cutoff=0.6,
        policy="specificity=0.95",
        anomalous=True,
        slices=each if items > 1 else None,
        input=InputFacts(kind="array", modality="", rows=2, columns=2, frames=items, window=None),
        timing_ms={},
        **more,
    )


@pytest.mark.parametrize("name", ["body", "data", "image", "1.dcm"])
def test_one_field_of_any_name_is_one_file(name: str) -> None:
    kind = "application/octet-stream" if name == "body" else FORM
    request = read_request({name: bytearray(b"bytes")}, {"Content-Type": kind})
    assert request.source == b"bytes"
    assert (request.protocol, request.id, request.options.heatmap) == ("medad", None, "none")


def test_several_fields_are_the_files_of_one_series_in_their_order() -> None:
    row = {"b": bytearray(b"one"), "X-Medad-Heatmap": bytearray(b"png"), "a": bytearray(b"two")}
    headers = {**{name: {"content-type": ""} for name in row}, "Content-Type": FORM, "Content-Length": "462"}
    request = read_request(row, headers)
    assert request.source == (b"one", b"two")
    assert request.options.heatmap == "png"


def test_options_come_from_headers_in_any_case_before_fields() -> None:
    row = {"data": b"x", "x-medad-policy": b"youden", "X-MEDAD-HEATMAP": b" npy "}
    request = read_request(row, {"x-MEDAD-policy": "f1", "content-type": FORM})
    assert (request.options.policy, request.options.heatmap) == ("f1", "npy")
    assert fault({"body": b"x"}, {"X-Medad-Heatmap": "gif"}).code == 400


def test_parts_that_overwrote_each_other_are_refused() -> None:
    # curl -F f=@a.dcm -F f=@b.dcm of 500 kB each: the last alone arrives
    headers = {"Content-Type": FORM, "Content-Length": "1000355"}
    error = fault({"f": bytes(500_000)}, headers)
    assert error.code == 400
    assert "share one name" in error.message
    assert len(read_request({"f": bytes(500_000), "g": bytes(500_000)}, headers).source) == 2


def test_a_real_form_with_long_file_names_has_lost_nothing() -> None:
    # e.g. Chinese names of 80 letters, percent-encoded beside the plain one
    fields = {f"part{i}": ("x" * 240 + ".dcm", bytes(10), "application/dicom") for i in range(300)}
    body, kind = encode_multipart_formdata(fields)
    row = {name: content for name, (_, content, _) in fields.items()}
    request = read_request(row, {"Content-Type": kind, "Content-Length": str(len(body))})
    assert len(request.source) == 300


@pytest.mark.parametrize("kind", ["related", "mixed"])
def test_the_parts_of_a_dicomweb_body_are_a_series(kind: str) -> None:
    files = [b"DICM\r\n--\r\n" + bytes([i]) * 100 + b"\r\n" for i in range(3)]
    body, form = encode_multipart_formdata([("f", ("f", content, "application/dicom")) for content in files])
    boundary = form.partition("boundary=")[2]
    header = f'Multipart/{kind}; type="application/dicom"; boundary="{boundary}"'
    assert read_request({"body": bytearray(body)}, {"content-TYPE": header}).source == tuple(files)
    with pytest.raises(InputError, match="end of its headers"):
        list(split_parts(b"--b\r\nContent-Type: application/dicom", b"b"))


def test_no_more_parts_are_taken_apart_than_there_may_be() -> None:
    many = {"body": bytearray(b"--b\r\n\r\n12\r\n" * 500_000)}
    tracemalloc.start()
    try:
        error = fault(many, {"Content-Type": "multipart/related; boundary=b"})
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert error.code == 413
    assert most < 2**20


@pytest.mark.parametrize(
    ("row", "headers"),
    [
        ({}, {}),
        ({}, {"Content-Type": FORM}),
        ({"X-Medad-Policy": b"f1"}, {"Content-Type": FORM}),
        ({"DICM": b"1", "z": b"2"}, {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}),
        ({"body": b""}, {"Content-Type": "multipart/related; boundary=b"}),
    ],
)
def test_a_request_without_a_file_is_400_and_says_how_to_send_one(row: Any, headers: Any) -> None:
    error = fault(row, headers)
    assert error.code == 400
    assert "curl -T" in error.hint


def test_more_parts_than_allowed_are_413() -> None:
    assert fault({str(i): b"x" for i in range(5)}, {"Content-Type": FORM}, Limits(max_members=4)).code == 413


@pytest.mark.parametrize("decoded", [False, True])
def test_an_infer_request_is_a_tensor(decoded: bool) -> None:
    body = tensor_body()
    request = read_request({"body": json.loads(body) if decoded else bytearray(b"\n " + body)}, JSON)
    assert isinstance(request.source, np.ndarray)
    assert request.source.dtype == np.float32
    assert request.source.tolist() == [[[[0, 0.5], [1, 0]]], [[[1, 1], [1, 0.25]]]]
    assert (request.protocol, request.id, request.outputs) == ("oip", "a1", ())


def test_nested_data_are_read_in_row_major_order() -> None:
    data = np.arange(8.0).reshape(2, 1, 2, 2)
    request = read_request({"body": tensor_body(data=data.tolist())}, JSON)
    assert np.array_equal(request.source, data)


def test_a_tensor_may_follow_its_json_in_binary() -> None:
    tensor = np.random.default_rng(0).normal(size=(3, 1, 4, 5)).astype("<f4")
    head = {"name": "x", "shape": [3, 1, 4, 5], "datatype": "FP32", "parameters": {"binary_data_size": tensor.nbytes}}
    text = json.dumps({"inputs": [head]}).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(text))}
    request = read_request({"body": text + tensor.tobytes()}, headers)
    assert np.array_equal(request.source, tensor)
    for body in (text + tensor.tobytes()[:-4], text + tensor.tobytes() + b"1234", text):
        error = fault({"body": body}, headers)
        assert (error.code, type(error)) == (400, OipError)
    assert fault({"body": text}, {"Inference-Header-Content-Length": "-1"}).code == 400


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"datatype": "FP64"}, 415),
        ({"data": [0.0] * 7}, 400),
        ({"data": [0.0] * 9}, 400),
        ({"data": ["0"] * 8}, 400),
        ({"data": [True] * 8}, 400),
        ({"data": [[0.0] * 4, 0.0, 0.0, 0.0, 0.0]}, 400),
        ({"data": None}, 400),
        ({"data": []}, 400),
        ({"data": [10**400] + [0] * 7}, 400),
        ({"data": [1e39] + [0] * 7}, 422),
        ({"data": [float("nan")] * 8}, 422),
        ({"shape": [2, 1, 2, -2]}, 400),
        ({"shape": [2.0, 1, 2, 2]}, 400),
        ({"shape": []}, 400),
        ({"shape": [10**9, 10**9]}, 413),
        ({"ZEBRA^QUAGGA": 1}, 400),
        ({"name": 7}, 400),
    ],
)
def test_an_infer_request_that_is_not_valid_is_refused_in_the_protocols_form(change: dict[str, Any], code: int) -> None:
    error = fault({"body": tensor_body(**change)}, JSON)
    assert error.code == code
    answer = json.loads(encode_answer(None, error))
    assert isinstance(answer["error"], str)
    assert answer.keys() == {"error"}
    assert "ZEBRA" not in answer["error"]


def test_two_inputs_or_unknown_outputs_are_refused() -> None:
    whole = json.loads(tensor_body())
    assert fault({"body": {**whole, "inputs": whole["inputs"] * 2}}, JSON).code == 400
    assert fault({"body": {**whole, "outputs": [{"name": "logits"}]}}, JSON).code == 422


def test_json_that_is_no_infer_request_gets_our_error() -> None:
    for body in (b'{"a": 1}', {"a": 1}, b'{"inputs": [', b"{" * 5000):
        error = fault({"body": body}, JSON)
        assert error.code == 400
        assert json.loads(encode_answer(None, error))["error"].keys() == {"code", "message", "hint"}


def test_json_over_the_limit_is_413_before_it_is_read() -> None:
    assert fault({"body": tensor_body()}, JSON, Limits(max_json_bytes=50)).code == 413
    assert fault({"body": tensor_body()}, JSON, Limits(max_values=7)).code == 413


def test_a_tensor_has_no_heatmap() -> None:
    assert fault({"body": tensor_body()}, {**JSON, "X-Medad-Heatmap": "png"}).code == 422


def test_an_infer_answer_holds_one_value_an_item() -> None:
    request = read_request({"body": tensor_body()}, JSON)
    answer = json.loads(encode_answer(request, result(3, warnings=("a", "b"))))
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("m", "2.0", "a1")
    outputs = {o["name"]: (o["datatype"], o["shape"], o["data"]) for o in answer["outputs"]}
    assert outputs == {
        "score": ("FP64", [3], [0.0, 0.1, 0.2]),
        "p_value": ("FP64", [3], [0.5, 0.5, 0.5]),
        "anomalous": ("BOOL", [3], [False, False, True]),
    }
    assert answer["parameters"] == {
        "policy": "specificity=0.95",
        "level": "patient",
        "patient_score": 0.7,
        "patient_p_value": 0.05,
        "patient_cutoff": 0.6,
        "patient_anomalous": True,
        "warnings": "a; b",
    }


def test_outputs_asked_for_come_alone_and_in_that_order() -> None:
    whole = json.loads(tensor_body())
    del whole["id"]
    request = read_request({"body": {**whole, "outputs": [{"name": "severity"}, {"name": "score"}]}}, JSON)
    answer = json.loads(encode_answer(request, result(severity=0.25)))
    assert [(o["name"], o["data"]) for o in answer["outputs"]] == [("severity", [0.25]), ("score", [0.7])]
    assert "id" not in answer


def test_a_files_answer_and_error_are_ours() -> None:
    request = read_request({"body": b"x"}, {})
    assert json.loads(encode_answer(request, result())) == result().to_json()
    error = InputError(422, "no", "do")
    assert json.loads(encode_answer(request, error)) == {"error": {"code": 422, "message": "no", "hint": "do"}}
    infer = read_request({"body": tensor_body()}, JSON)
    assert json.loads(encode_answer(infer, error)) == {"error": "no. do"}


TEXT = st.text(st.sampled_from('a1 {}[]"\\\u00e9\ud800'), max_size=30)
"""Half characters too: JSON can hold them, and UTF-8 cannot."""
LIMITS = Limits(max_members=3, max_values=64, max_json_bytes=200)
KINDS = ("multipart/form-data", "multipart/related", "multipart/mixed", "application/json", "application/octet-stream")
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)
ANY_BYTES = st.binary(max_size=60) | st.sampled_from(
    [b"--b\r\n\r\nx\r\n--b--", b"--b\r\n--b\r\n\r\n", b"--b", tensor_body()]
)
ANY_VALUE = ANY_BYTES | ANY_BYTES.map(bytearray) | TEXT | ANY_JSON
ANY_HEADERS = st.dictionaries(
    st.sampled_from(
        ["Content-Type", "content-length", "X-Medad-Heatmap", "x-medad-policy", "Inference-Header-Content-Length"]
    )
    | st.text(max_size=9),
    st.builds("{}; boundary={}".format, st.sampled_from(KINDS), st.sampled_from(["b", '"b"', "", "(", '"']))
    | ANY_VALUE,
    max_size=4,
)


def outcome(row: dict[str, Any], headers: dict[str, Any]) -> None:
    """A request within the limits, or an error that says what to do; anything else fails."""
    found: Request | InputError
    try:
        found = read_request(row, headers, LIMITS)
    except InputError as error:
        found = error
    if isinstance(found, InputError):
        assert 400 <= found.code < 500
        assert found.hint
        assert json.loads(encode_answer(None, found))
        return
    if isinstance(found.source, np.ndarray):
        assert found.source.size <= LIMITS.max_values
    elif isinstance(found.source, tuple):
        assert 2 <= len(found.source) <= LIMITS.max_members
        assert set(map(type, found.source)) == {bytes}
    else:
        assert isinstance(found.source, bytes)


@given(
    st.dictionaries(
        st.just("body") | st.sampled_from(["X-Medad-Heatmap", "1"]) | st.text(max_size=9), ANY_VALUE, max_size=4
    ),
    ANY_HEADERS,
)
@example({"body": "\ud800"}, JSON)
@example({"body": "\ud800"}, {"Content-Type": "multipart/related; boundary=\ud800"})
def test_any_row_and_headers_are_a_request_or_an_error(row: dict[str, Any], headers: dict[str, Any]) -> None:
    outcome(row, headers)


@given(
    st.dictionaries(st.sampled_from(["id", "inputs", "outputs", "parameters", "more"]), ANY_JSON, max_size=4), st.data()
)
def test_any_json_is_an_infer_request_or_an_error(body: dict[str, Any], data: st.DataObject) -> None:
    whole = json.loads(tensor_body())
    field = data.draw(st.sampled_from([*whole["inputs"][0], "parameters"]))
    whole["inputs"][0][field] = data.draw(ANY_JSON)
    for said in (body, whole, {**whole, **body}):
        outcome({"body": said}, JSON)
        outcome({"body": json.dumps(said).encode()}, data.draw(ANY_HEADERS))
