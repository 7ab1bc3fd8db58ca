"""LitServe around the predictor: ``python -m medad_serve.loadbench.litserve_server ARTIFACT PORT WORKERS BATCH DELAY``.

What its documentation shows, with nothing added but the body as bytes: FastAPI's own way, since LitServe reads JSON
and forms; with its fast queue. DELAY is in milliseconds. Requests with the header ``X-Raise`` are refused as LitServe's
documentation says, by an exception, and not by an answer with a status of its own.
"""

# Without postponed annotations: LitServe hands those of decode_request to FastAPI as they are.

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import litserve
from fastapi import Depends, HTTPException, Request
from starlette.responses import Response

from medad_serve.errors import InputError
from medad_serve.loadbench.litserved import RAISES
from medad_serve.predictor import Predictor, Result
from medad_serve.serving.requests import encode_answer
from medad_serve.serving.resources import cores
from medad_serve.serving.timing import TOLD, WHOLE, write_timing


class Received(NamedTuple):
    """A request, and when its body was there, by the clock that processes share."""

    body: bytes
    at: float
    raises: bool


class Said(NamedTuple):
    """An answer; milliseconds that its request waited for a worker, and that the batch took."""

    answer: Result | InputError
    raises: bool
    queue_ms: float
    batch_ms: float


async def _received(request: Request) -> Received:
    body = await request.body()
    return Received(body, time.monotonic(), RAISES in request.headers)


class MedadAPI(litserve.LitAPI):  # type: ignore[misc]
    """One artifact."""

    def __init__(self, artifact: Path, threads: int, batch: int, delay_ms: float) -> None:
        super().__init__(max_batch_size=batch, batch_timeout=delay_ms / 1e3)
        self.artifact = artifact
        self.threads = threads

    def setup(self, device: str) -> None:
        """Open the artifact in a worker."""
        self.predictor = Predictor.load(self.artifact, threads=self.threads)
        self.predictor.warm_up()

    def decode_request(self, request: Annotated[Received, Depends(_received)]) -> Received:
        """Return the request as it came: the predictor decodes."""
        return request

    def batch(self, inputs: list[Received]) -> list[Received]:
        """Return the batch as it is."""
        return list(inputs)

    def predict(self, x: list[Received] | Received) -> list[Said] | Said:
        """Answer a batch, or the one request of batches of one."""
        if isinstance(x, Received):
            return self._predict([x])[0]
        return self._predict(x)

    def unbatch(self, output: list[Said]) -> list[Said]:
        """Return the answers as they are."""
        return output

    def encode_response(self, output: Said) -> Response:
        """Write one answer with its status and the times of its stages."""
        answer, raises, queue_ms, batch_ms = output
        if isinstance(answer, InputError) and raises:
            raise HTTPException(int(answer.code), answer.message)
        before = time.perf_counter()
        body = encode_answer(None, answer)
        encode_ms = (time.perf_counter() - before) * 1e3
        spent = answer.timing_ms if isinstance(answer, Result) else {}
        told = {**spent, "queue": queue_ms, "encode": encode_ms, WHOLE: batch_ms + encode_ms}
        status = int(answer.code) if isinstance(answer, InputError) else 200
        return Response(body, status, {TOLD: write_timing(told)}, "application/json")

    def _predict(self, received: Sequence[Received]) -> list[Said]:
        start = time.monotonic()
        answers = self.predictor.predict([each.body for each in received])
        took = (time.monotonic() - start) * 1e3
        return [
            Said(answer, each.raises, (start - each.at) * 1e3, took)
            for answer, each in zip(answers, received, strict=True)
        ]


def main(arguments: Sequence[str]) -> None:
    """Serve until ended."""
    artifact, (port, workers, batch, delay) = Path(arguments[0]), map(int, arguments[1:])
    api = MedadAPI(artifact, max(1, cores() // workers), batch, delay)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=workers, timeout=False, fast_queue=True)
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="warning", access_log=False)


if __name__ == "__main__":
    main(sys.argv[1:])
