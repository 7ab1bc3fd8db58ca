"""The handler over a real artifact and TorchServe's own context, without its frontend."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from ts.context import Context, RequestProcessor
from ts.utils.util import list_classes_from_module

from medad_serve.deadline import Postponed
from medad_serve.errors import InputError
from medad_serve.handlers import medad_handler
from medad_serve.handlers.medad_handler import MedadHandler
from medad_serve.io import decode
from medad_serve.prep import prepare
from medad_serve.serving.timing import ASKED, TOLD, read_timing

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


def test_a_fault_of_ours_costs_no_neighbour_and_never_quotes_the_input(
    handler: MedadHandler, dicom_files: list[Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bodies = [path.read_bytes() for path in dicom_files[:3]]
    prep = handler.predictor.manifest.prep
    bad = prepare(decode(bodies[1]), prep).tensor[0]
    run, decoder = handler.predictor.runtime.run, handler.predictor.decoder
    decoded: list[int] = []

    def failing(batch: Any, names: Any) -> Any:
        if any(np.array_equal(row, bad) for row in batch):
            raise ValueError("cannot digest DOE^JANE")
        return run(batch, names)

    def counting(sources: Any, deadline: Any) -> Any:
        decoded.append(len(sources))
        return decoder(sources, deadline)

    monkeypatch.setattr(handler.predictor.runtime, "run", failing)
    monkeypatch.setattr(handler.predictor.scorer, "_may_mix", True)  # all three in one call
    monkeypatch.setattr(handler.predictor, "decoder", counting)
    codes, (_, fault, _) = ask(handler, [row(body) for body in bodies])
    assert codes == [200, 500, 200]
    assert decoded == [3]
    assert "DOE" not in json.dumps(fault) + caplog.text
    assert "ValueError" in caplog.text


def test_a_fault_outside_any_item_is_answered_too(
    handler: MedadHandler, ct: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(*_: object) -> None:
        raise ValueError("DOE^JANE")

    monkeypatch.setattr(handler.predictor, "predict", failing)
    codes, answers = ask(handler, [row(ct), row(ct), row(None)])
    assert codes == [500, 500, 400]
    assert "DOE" not in json.dumps(answers) + caplog.text


def test_bodies_are_given_back_before_anything_is_decoded(
    handler: MedadHandler, ct: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, seen = [row(bytearray(ct)), {"a": bytearray(ct), "b": bytearray(ct)}], []
    predict = handler.predictor.predict

    def looking(*given: Any) -> Any:
        seen.extend(len(value) for each in rows for value in each.values())
        return predict(*given)

    monkeypatch.setattr(handler.predictor, "predict", looking)
    assert ask(handler, rows)[0] == [200, 200]
    assert seen == [0, 0, 0]


def test_a_batch_has_most_of_the_response_timeout(
    handler: MedadHandler, ct: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []
    predict = handler.predictor.predict

    def looking(items: Any, options: Any, deadline: Any) -> Any:
        given.extend([deadline.seconds, deadline.left()])
        return predict(items, options, deadline)

    monkeypatch.setattr(handler.predictor, "predict", looking)
    ask(handler, [row(ct)])
    assert given[0] == pytest.approx(0.8 * 120)
    assert 90 < given[1] < given[0]


def test_what_comes_too_late_is_told_to_come_again(
    handler: MedadHandler, ct: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handler, "seconds", 0.0)
    codes, (fault, _) = ask(handler, [row(ct), row(ct)])
    assert codes == [503, 503]
    assert fault["error"]["hint"] == "Send it again"


def test_only_what_may_be_sent_again_is_told_when(handler: MedadHandler, monkeypatch: pytest.MonkeyPatch) -> None:
    context = make_context(Path())
    context.request_processor = [RequestProcessor({}) for _ in range(3)]
    answers = [Postponed(), InputError(507, "no memory left", "Send it again"), InputError(413, "too large")]
    monkeypatch.setattr(handler.predictor, "predict", lambda *_: answers)
    handler.handle([row(b"x")] * 3, context)
    assert [context.get_response_headers(i).get("Retry-After") for i in range(3)] == ["1", "1", None]


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


def test_what_is_answered_is_watched(handler: MedadHandler, ct: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(handler.watch, "record", lambda *given: told.append(given))
    ask(handler, [row(ct), row(b"no image"), row(ct)])
    [(answers, milliseconds, batch, losses)] = told
    assert [code for code, _ in answers] == [200, 400, 200]
    assert milliseconds.keys() == {"decode", "prepare", "infer"}
    assert batch == 3
    assert losses is handler.predictor.decoder.losses


def test_who_asks_is_told_where_the_time_went(handler: MedadHandler, ct: bytes) -> None:
    context = make_context(Path())
    context.request_processor = [RequestProcessor(h) for h in ({ASKED: "1"}, {}, {ASKED: "1"})]
    bodies = [json.loads(body) for body in handler.handle([row(ct), row(ct), row(b"no image")], context)]
    told = [read_timing(context.get_response_headers(index).get(TOLD, "")) for index in range(3)]
    stages = ("decode", "prepare", "infer")
    assert {stage: told[0][stage] for stage in stages} == pytest.approx(bodies[0]["timing_ms"], abs=1e-3)
    assert 0 < sum(told[0][stage] for stage in (*stages, "read", "encode")) <= told[0]["handle"]
    assert not told[1]
    assert set(told[2]) == {"read", "encode", "handle"}


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
