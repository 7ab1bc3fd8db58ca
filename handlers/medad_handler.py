"""The TorchServe handler of every model: bytes and headers in, one JSON answer per item out.

TorchServe imports this file by its basename from the unpacked archive and wants exactly one class in it.
"""

from __future__ import annotations

import json
import logging
import os
from http import HTTPStatus
from pathlib import Path
from typing import Any, get_args

from medad_serve.errors import InputError
from medad_serve.predictor import HeatmapFormat, Options, Predictor, Result

logger = logging.getLogger(__name__)
FORMATS: dict[str, HeatmapFormat] = {name: name for name in get_args(HeatmapFormat)}
DEFAULT_ANSWER_BYTES = 6_553_500
"""TorchServe's own max_response_size."""


class MedadHandler:
    """Loads the archived artifact once per worker and answers batches."""

    def initialize(self, context: Any) -> None:
        """Open the artifact in ``model_dir`` with the runtime that model-config.yaml names."""
        config = context.model_yaml_config or {}
        settings = config.get("handler", {})
        gpu = context.system_properties.get("gpu_id")
        self.max_answer_bytes = int(settings.get("max_answer_bytes", DEFAULT_ANSWER_BYTES))
        self.predictor = Predictor.load(
            Path(context.system_properties["model_dir"]),
            runtime=settings.get("runtime", "onnx"),
            threads=max(1, _cores() // max(1, int(config.get("maxWorkers", 1)))),
            device="cpu" if gpu is None else f"cuda:{gpu}",
        )

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[bytes]:
        """Answer each row of the batch on its own terms: result or error, with its own status."""
        answers: dict[int, Result | InputError] = {}
        asked: list[tuple[int, bytes, Options]] = []
        for index, row in enumerate(data):
            try:
                asked.append((index, _body(row), _options(row, context.get_all_request_header(index))))
            except InputError as error:
                answers[index] = error
        for (index, _, _), answer in zip(asked, self._predict(asked), strict=True):
            answers[index] = answer
        return [self._encode(answers[index], index, context) for index in range(len(data))]

    def _predict(self, asked: list[tuple[int, bytes, Options]]) -> list[Result | InputError]:
        """Predict the batch; where that fails as a whole, each item alone, so that one costs no neighbour."""
        try:
            return self.predictor.predict([body for _, body, _ in asked], [option for _, _, option in asked])
        except Exception as error:  # a fault of ours is an answer too: the worker stays
            _log_fault(error)
            if len(asked) == 1:
                return [_fault(error)]
        return [self._predict([item])[0] for item in asked]

    def _encode(self, answer: Result | InputError, index: int, context: Any) -> bytes:
        """Write one answer and its status; one too large for TorchServe becomes an error that fits."""
        try:
            body = json.dumps(answer.to_json(), allow_nan=False).encode()
        except Exception as error:  # as above
            _log_fault(error)
            answer = _fault(error)
            body = json.dumps(answer.to_json()).encode()
        if len(body) > self.max_answer_bytes:
            answer = InputError(413, "the answer is larger than the server may send", "Ask without the heatmap")
            body = json.dumps(answer.to_json()).encode()
        status = answer.code if isinstance(answer, InputError) else HTTPStatus.OK
        context.set_response_status(int(status), status.phrase, index)
        context.set_response_content_type(index, "application/json")
        return body


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _body(row: dict[str, Any]) -> bytes:
    """Return the bytes of a row, whether sent as the body or as the multipart field ``data``."""
    body = row.get("data", row.get("body"))
    if isinstance(body, bytes | bytearray):
        return bytes(body)
    if isinstance(body, str):
        return body.encode()
    if body is None:
        raise InputError(
            400,
            "the request brought no file",
            "Send it as the body with Content-Type: application/octet-stream, e.g. curl -T FILE",
        )
    raise InputError(415, "JSON is not read", "Send the file itself with Content-Type: application/octet-stream")


def _options(row: dict[str, Any], headers: dict[str, Any]) -> Options:
    """Read X-Medad-* from headers in any case, else from multipart fields."""
    found = {name.lower(): value for name, value in [*row.items(), *headers.items()] if not isinstance(value, dict)}
    texts = {name: _text(found[name]) for name in ("x-medad-heatmap", "x-medad-policy") if name in found}
    heatmap = FORMATS.get(texts.get("x-medad-heatmap") or "none")
    if heatmap is None:
        raise InputError(400, "X-Medad-Heatmap asks for an unknown format", f"Choose one of: {', '.join(FORMATS)}")
    return Options(heatmap=heatmap, policy=texts.get("x-medad-policy") or None)


def _text(value: object) -> str:
    raw = value.decode("utf-8", "replace") if isinstance(value, bytes | bytearray) else str(value)
    return raw.strip()


def _fault(error: Exception) -> InputError:
    code = 507 if isinstance(error, MemoryError) else 500
    return InputError(code, f"internal fault ({type(error).__name__})", "Send it again; if it stays, see the log")


def _log_fault(error: Exception) -> None:
    """Log where it happened and never what it says: messages can quote patient data."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    place = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else "unknown"
    logger.error("prediction failed: %s at %s", type(error).__name__, place)
