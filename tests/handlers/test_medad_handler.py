"""The handler over a real artifact and TorchServe's own context, without its frontend."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import pytest
from ts.context import Context, RequestProcessor
from ts.utils.util import list_classes_from_module

from medad_serve.handlers import medad_handler
from medad_serve.handlers.medad_handler import MedadHandler

BAD = {"empty": b"", "text": b"no image", "truncated": ..., "nothing": None, "json": {"a": 1}}


def make_context(model_dir: Path, config: dict[str, Any] | None = None, gpu: int | None = None) -> Context:
    return Context("m", str(model_dir), {}, 8, gpu, "0.12.0", model_yaml_config=config or {})


@pytest.fixture(scope="module")
def handler(artifact: Path) -> Iterator[MedadHandler]:
    made = MedadHandler()
    made.initialize(make_context(artifact))
    yield made
    made.predictor.decoder.close()


@pytest.fixture(scope="module")
def ct(dicom_files: list[Path]) -> bytes:
    return dicom_files[0].read_bytes()


def bad_body(bad: str, ct: bytes) -> object:
    return ct[: len(ct) // 2] if bad == "truncated" else BAD[bad]


def ask(
    handler: MedadHandler, rows: list[dict[str, Any]], headers: list[dict[str, Any]] | None = None
) -> tuple[list[int], list[dict[str, Any]]]:
    context = make_context(Path())
    context.request_processor = [RequestProcessor(h) for h in headers or [{} for _ in rows]]
    answers = [json.loads(body) for body in handler.handle(rows, context)]
    assert all(context.get_response_content_type(i) == "application/json" for i in range(len(rows)))
    for answer in answers:
        answer.pop("timing_ms", None)
    return [context.get_response_status(i)[0] for i in range(len(rows))], answers


def row(body: object) -> dict[str, Any]:
    return {} if body is None else {"body": body}


@pytest.mark.parametrize("kind", [bytes, bytearray])
@pytest.mark.parametrize("field", ["body", "data"])
def test_a_good_item_is_answered(handler: MedadHandler, ct: bytes, field: str, kind: type[bytes]) -> None:
    codes, [answer] = ask(handler, [{field: kind(ct)}])
    assert codes == [200]
    assert isinstance(answer["score"], float)


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_item_gets_its_error_and_its_neighbours_their_own_answers(
    handler: MedadHandler, ct: bytes, bad: str
) -> None:
    alone = ask(handler, [row(ct)])[1][0]
    codes, (first, fault, last) = ask(handler, [row(ct), row(bad_body(bad, ct)), row(ct)])
    assert codes[0] == codes[2] == 200
    assert 400 <= codes[1] < 500
    assert fault["error"].keys() == {"code", "message", "hint"}
    assert fault["error"]["code"] == codes[1]
    assert fault["error"]["hint"]
    for answer in (first, last):
        assert answer["score"] == pytest.approx(alone["score"], rel=1e-6)
        assert answer["anomalous"] is alone["anomalous"]


def test_a_batch_of_bad_items_is_answered(handler: MedadHandler, ct: bytes) -> None:
    codes, answers = ask(handler, [row(bad_body(bad, ct)) for bad in BAD])
    assert codes == [answer["error"]["code"] for answer in answers]


@pytest.mark.parametrize("name", ["X-Medad-Heatmap", "x-medad-heatmap", "X-MEDAD-HEATMAP"])
def test_the_heatmap_header_is_read_in_any_case(handler: MedadHandler, ct: bytes, name: str) -> None:
    _, (with_heatmap, without) = ask(handler, [row(ct), row(ct)], [{name: "png"}, {}])
    assert with_heatmap["heatmap"]["format"] == "png"
    assert "heatmap" not in without


def test_options_are_read_from_multipart_fields(handler: MedadHandler, ct: bytes) -> None:
    headers = {"data": {"content-type": "application/dicom"}, "X-Medad-Heatmap": {"content-type": ""}}
    _, [answer] = ask(handler, [{"data": bytearray(ct), "X-Medad-Heatmap": bytearray(b"npy")}], [headers])
    assert answer["heatmap"]["format"] == "npy"


@pytest.mark.parametrize(("header", "code"), [("X-Medad-Heatmap", 400), ("X-Medad-Policy", 422)])
def test_an_unknown_option_fails_its_item_alone(handler: MedadHandler, ct: bytes, header: str, code: int) -> None:
    codes, (fault, good) = ask(handler, [row(ct), row(ct)], [{header: "no-such-thing"}, {}])
    assert codes == [code, 200]
    assert "no-such-thing" not in json.dumps(fault)
    assert "score" in good


def test_an_answer_too_large_for_torchserve_becomes_413(artifact: Path, ct: bytes) -> None:
    handler = MedadHandler()
    handler.initialize(make_context(artifact, {"handler": {"max_answer_bytes": 5000}}))
    codes, (fault, good) = ask(handler, [row(ct), row(ct)], [{"X-Medad-Heatmap": "npy"}, {}])
    assert codes == [413, 200]
    assert "without the heatmap" in fault["error"]["hint"]
    assert "score" in good


def test_a_fault_of_ours_is_answered_and_never_quotes_the_input(
    handler: MedadHandler, ct: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    predict = handler.predictor.predict

    def failing(items: list[bytes], options: Any) -> Any:
        if b"DOE^JANE" in items:
            raise ValueError(f"cannot digest {items!r}")
        return predict(items, options)

    monkeypatch.setattr(handler.predictor, "predict", failing)
    codes, (good, fault) = ask(handler, [row(ct), row(b"DOE^JANE")])
    assert codes == [200, 500]
    assert "score" in good
    assert "DOE" not in json.dumps(fault) + caplog.text
    assert "ValueError" in caplog.text


def test_cores_are_shared_among_the_workers_and_the_gpu_is_the_one_assigned(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}
    load = medad_handler.Predictor.load

    def loading(path: Path, **how: Any) -> Any:
        seen.update(how)
        return load(path, runtime=how["runtime"], threads=1)

    before = cv2.getNumThreads()
    monkeypatch.setattr(medad_handler.Predictor, "load", loading)
    monkeypatch.setattr(medad_handler, "cores", lambda: 12)
    config = {"maxWorkers": 5, "responseTimeout": 30, "handler": {"runtime": "torchscript"}}
    try:
        MedadHandler().initialize(make_context(artifact, config, gpu=1))
        assert cv2.getNumThreads() == 2
    finally:
        cv2.setNumThreads(before)
        seen["decoder"].close()
    assert (seen["runtime"], seen["threads"], seen["device"]) == ("torchscript", 2, "cuda:1")
    assert seen["decoder"].budget_s == 15  # half of the time in which TorchServe wants the batch answered


def test_limits_are_those_of_configuration_and_environment(
    artifact: Path, ct: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDAD_MAX_FRAMES", "7")
    handler = MedadHandler()
    handler.initialize(make_context(artifact, {"handler": {"limits": {"max_pixels": 100, "max_frames": 9}}}))
    handler.predictor.decoder.close()
    assert (handler.limits.max_pixels, handler.limits.max_frames) == (100, 7)
    assert ask(handler, [row(ct)])[0] == [413]


def test_what_is_answered_is_watched(handler: MedadHandler, ct: bytes) -> None:
    before = handler.watch.summary()
    ask(handler, [row(ct), row(b"no image"), row(ct)])
    after = handler.watch.summary()
    assert after.requests.get(200, 0) - before.requests.get(200, 0) == 2
    assert after.requests.get(400, 0) - before.requests.get(400, 0) == 1
    assert after.batches.get(3, 0) - before.batches.get(3, 0) == 1
    assert after.milliseconds.keys() >= {"decode", "prepare", "infer"}


def test_torchserve_finds_exactly_one_class() -> None:
    assert list_classes_from_module(medad_handler) == [MedadHandler]


def test_importing_the_handler_loads_neither_torch_nor_training_code() -> None:
    code = (
        "import sys, medad_serve.handlers.medad_handler\n"
        "print([m for m in sys.modules if m == 'torch' or m.startswith(('medad_serve.models', 'medad_serve.training',"
        " 'medad_serve.export', 'medad_serve.data'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
