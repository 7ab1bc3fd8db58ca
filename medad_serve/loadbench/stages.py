"""Where the milliseconds of a request go: stages that add up to what its client waited."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass

from medad_serve.errors import InputError
from medad_serve.loadbench.closed_loop import Load, Sent
from medad_serve.loadbench.counters import Counters
from medad_serve.predictor import Predictor
from medad_serve.serving.requests import encode_answer
from medad_serve.serving.timing import WHOLE

IN_PROCESS = "in process"
OWN = ("read", "decode", "prepare", "infer", "encode")
"""Stages of a request in its handler; those that share a call of the graph all wait for the whole of it."""
STAGES = {
    "transport": "body and answer between client and server, and whatever else the server does",
    "queue": "waiting for a worker",
    "hand-over": "server to worker and back",
    "neighbours": "the handler, busy with others of the batch and with what no stage holds",
    "read": "request to file",
    "decode": "file to pixels",
    "prepare": "pixels to tensor",
    "infer": "tensor to score",
    "encode": "answer to bytes",
}


@dataclass(frozen=True)
class Breakdown:
    """Mean milliseconds of a request by stage, of one way to answer and one number of clients."""

    way: str
    clients: int
    requests: int
    throughput: float
    """Answers a second."""
    latency_ms: float
    """As the clients measured it."""
    cpu_ms: float | None
    """Processor time a request, of the server's processes or of this one; None of a server elsewhere."""
    stages: dict[str, float]
    """By the names of ``STAGES``; they add up to the latency."""


def split(load: Load, counters: Counters | None = None) -> dict[str, float]:
    """Divide the mean latency of a load by what the server told; ``counters`` are TorchServe's of the same load.

    Without those, transport holds what they would tell apart: the queue, and the way to the worker.
    """
    told = load.stages
    handler = told.get(WHOLE, 0.0)
    own = {stage: told.get(stage, 0.0) for stage in OWN}
    queue, hand_over = told.get("queue", 0.0), 0.0
    if counters is not None and counters.requests > 0:
        queue = counters.queue_ms / counters.requests
        hand_over = counters.served_ms / counters.requests - queue - handler
    return {
        "transport": load.mean - queue - hand_over - handler,
        "queue": queue,
        "hand-over": hand_over,
        "neighbours": handler - sum(own.values()),
        **own,
    }


def in_process(predictor: Predictor, bodies: Sequence[Sent], clients: int, batch: int, seconds: float) -> Breakdown:
    """Answer in this process for ``seconds`` what ``clients`` would ask, at most ``batch`` at once.

    Each request waits for all of its batch, and for no other: in a process nothing queues.
    """
    batch = min(clients, batch)
    turn = itertools.cycle(bodies)
    sums = dict.fromkeys(("neighbours", *OWN), 0.0)
    waited, done = 0.0, 0
    start, busy = time.perf_counter(), time.process_time()
    while time.perf_counter() - start < seconds:
        files = [sent.body for sent in itertools.islice(turn, batch)]
        began = time.perf_counter()
        answers = predictor.predict(files)
        for answer in answers:
            if isinstance(answer, InputError):
                raise answer
            before = time.perf_counter()
            encode_answer(None, answer)
            sums["encode"] += (time.perf_counter() - before) * 1e3
            for stage, ms in answer.timing_ms.items():
                sums[stage] += ms
        waited += batch * (time.perf_counter() - began) * 1e3
        done += batch
    sums["neighbours"] = waited - sum(sums.values())
    return Breakdown(
        way=IN_PROCESS,
        clients=clients,
        requests=done,
        throughput=done / (time.perf_counter() - start),
        latency_ms=waited / done,
        cpu_ms=(time.process_time() - busy) * 1e3 / done,
        stages={stage: ms / done for stage, ms in sums.items()},
    )


def pooled(parts: Sequence[Breakdown]) -> Breakdown:
    """Put rounds of one way and number of clients together, every request counted alike."""
    requests = sum(part.requests for part in parts)
    seconds = sum(part.requests / part.throughput for part in parts)

    def mean(values: Sequence[float]) -> float:
        return sum(value * part.requests for value, part in zip(values, parts, strict=True)) / requests

    costs = [part.cpu_ms for part in parts if part.cpu_ms is not None]
    return Breakdown(
        way=parts[0].way,
        clients=parts[0].clients,
        requests=requests,
        throughput=requests / seconds,
        latency_ms=mean([part.latency_ms for part in parts]),
        cpu_ms=mean(costs) if len(costs) == len(parts) else None,
        stages={stage: mean([part.stages[stage] for part in parts]) for stage in parts[0].stages},
    )
