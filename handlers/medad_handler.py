"""The TorchServe handler of every model: bytes and headers in, one JSON answer per item out.

TorchServe imports this file by its basename from the unpacked archive and wants exactly one class in it.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any

import cv2

from medad_serve.deadline import Deadline
from medad_serve.errors import InputError, place_of
from medad_serve.io import Limits
from medad_serve.predictor import Predictor, Result
from medad_serve.serving.isolation import open_decoder
from medad_serve.serving.receiving import PROTOCOL, receive_buffered
from medad_serve.serving.requests import Request, encode_answer, read_request
from medad_serve.serving.resources import cores
from medad_serve.serving.timing import ASKED, TOLD, Laps
from medad_serve.serving.watch import NO_LOSSES, Watch

logger = logging.getLogger(__name__)
DEFAULT_ANSWER_BYTES = 6_553_500
"""TorchServe's own max_response_size."""
DEFAULT_RESPONSE_TIMEOUT_S = 120
LATER = (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.INSUFFICIENT_STORAGE)
RETRY_AFTER_S = "1"
SHARE = 0.8
"""Of the response timeout, after which TorchServe ends the worker: nothing is begun that does not end within it."""


class MedadHandler:
    """Loads the archived artifact once per worker and answers batches."""

    def initialize(self, context: Any) -> None:
        """Open the artifact in ``model_dir`` with the runtime that model-config.yaml names."""
        config = context.model_yaml_config or {}
        settings = config.get("handler", {})
        workers = max(1, int(config.get("maxWorkers", 1)))
        threads = max(1, cores() // workers)
        gpu = context.system_properties.get("gpu_id")
        cv2.setNumThreads(threads)
        self.limits = Limits.of(settings.get("limits"), os.environ)
        self.max_answer_bytes = int(settings.get("max_answer_bytes", DEFAULT_ANSWER_BYTES))
        timeout = float(config.get("responseTimeout", DEFAULT_RESPONSE_TIMEOUT_S))
        self.seconds = SHARE * timeout
        self.decoder = open_decoder(response_timeout_s=timeout, workers=workers, limits=self.limits)
        self.predictor = Predictor.load(
            Path(context.system_properties["model_dir"]),
            runtime=settings.get("runtime"),
            threads=threads,
            device="cpu" if gpu is None else f"cuda:{gpu}",
            decoder=self.decoder,
            limits=self.limits,
        )
        self.predictor.warm_up()
        receive_buffered(sys.modules.get(PROTOCOL))
        self.watch = Watch(self.predictor.calibration, context.metrics)

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[bytes]:
        """Answer each row of the batch on its own terms: result or error, with its own status."""
        deadline, laps = Deadline.after(self.seconds), Laps()
        answers: dict[int, Result | InputError] = {}
        requests: dict[int, Request] = {}
        for index, row in enumerate(data):
            try:
                requests[index] = read_request(row, context.get_all_request_header(index), self.limits)
            except InputError as error:
                answers[index] = error
            except Exception as error:  # a fault of ours is an answer too: the worker stays
                answers[index] = _fault(error)
            _release(row)
            laps.lap(index, "read")
        answers |= zip(requests, self._predict(list(requests.values()), deadline), strict=True)
        told, bodies = [], []
        laps.skip()
        for index in range(len(data)):
            answer, body = self._encode(requests.get(index), answers[index])
            laps.lap(index, "encode")
            status = answer.code if isinstance(answer, InputError) else HTTPStatus.OK
            context.set_response_status(int(status), status.phrase, index)
            context.set_response_content_type(index, "application/json")
            if isinstance(answer, InputError) and status == HTTPStatus.INTERNAL_SERVER_ERROR:
                logger.error("answered 500: %s", answer.message)
            if status in LATER:
                context.set_response_header(index, "Retry-After", RETRY_AFTER_S)
            told.append((int(status), answer))
            bodies.append(body)
        losses = self.decoder.losses if self.decoder else NO_LOSSES
        self.watch.record(told, _milliseconds(answers.values()), len(data), losses)
        _tell_times(context, laps, told)
        return bodies

    def _predict(self, requests: list[Request], deadline: Deadline) -> list[Result | InputError]:
        """Predict the batch; its files are let go as they are decoded."""
        try:
            options = [request.options for request in requests]
            return self.predictor.predict((request.take() for request in requests), options, deadline)
        except Exception as error:  # as above; one item's fault is that item's answer already
            return [_fault(error)] * len(requests)

    def _encode(self, request: Request | None, answer: Result | InputError) -> tuple[Result | InputError, bytes]:
        """Write one answer; one too large for TorchServe, which would end the worker, becomes an error that fits."""
        try:
            body = encode_answer(request, answer)
        except Exception as error:  # as above
            answer = _fault(error)
            body = encode_answer(request, answer)
        if len(body) > self.max_answer_bytes:
            answer = InputError(413, "the answer is larger than the server may send", "Ask without the heatmap")
            body = encode_answer(request, answer)
        return answer, body


def _release(row: dict[str, Any]) -> None:
    """Empty what TorchServe holds until the batch is answered: what was read of it is a copy."""
    for value in row.values():
        if isinstance(value, bytearray):
            with suppress(BufferError):  # something still looks at it
                value.clear()


def _tell_times(context: Any, laps: Laps, told: list[tuple[int, Result | InputError]]) -> None:
    """Tell those who ask where the time of their request went."""
    for index, (_, answer) in enumerate(told):
        if ASKED in context.get_all_request_header(index):
            others = answer.timing_ms if isinstance(answer, Result) else {}
            context.set_response_header(index, TOLD, laps.told(index, others))


def _milliseconds(answers: Iterable[Result | InputError]) -> dict[str, float]:
    """Return what a batch took by stage; items that shared a call of the graph all state that call's time."""
    timings = [answer.timing_ms for answer in answers if isinstance(answer, Result)]
    spent = {stage: sum(timing[stage] for timing in timings) for stage in ("decode", "prepare")}
    return {**spent, "infer": sum({timing["infer"] for timing in timings})}


def _fault(error: Exception) -> InputError:
    _log_fault(error)
    code = 507 if isinstance(error, MemoryError) else 500
    return InputError(code, f"internal fault ({type(error).__name__})", "Send it again; if it stays, see the log")


def _log_fault(error: Exception) -> None:
    """Log where it happened and never what it says: messages can quote patient data."""
    logger.error("prediction failed: %s at %s", type(error).__name__, place_of(error))
