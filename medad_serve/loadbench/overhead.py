"""What serving costs beside its parts, measured in turn in one run so that other work disturbs all alike."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medad_serve.io import decode
from medad_serve.loadbench.closed_loop import Sent
from medad_serve.loadbench.footprint import Footprint
from medad_serve.loadbench.served import MODEL, NOOP, Serving
from medad_serve.prep import check_input, prepare
from medad_serve.runtime import run_batched


@dataclass(frozen=True)
class Overhead:
    """Processor milliseconds a request, medians over rounds; of the server's processes, or in this one."""

    clients: int
    requests: int
    noop_ms: float
    decode_ms: float
    """Decode, check and prepare."""
    infer_ms: float
    handler_ms: float

    @property
    def parts_ms(self) -> float:
        """What a request would cost were serving no more than its parts."""
        return self.noop_ms + self.decode_ms + self.infer_ms

    @property
    def ratio(self) -> float:
        """The handler beside the sum of its parts."""
        return self.handler_ms / self.parts_ms


def measure_overhead(
    served: Serving, bodies: Sequence[Sent], *, clients: int = 16, seconds: float = 10, rounds: int = 3
) -> Overhead:
    """Compare handler, no-op handler and the parts in this process, in rounds of ``seconds`` for each handler.

    The parts run in batches of the sizes that the handler was given in the same round.
    """
    served.warm_up(bodies, clients, 2 * seconds)
    _parts(served, bodies, [served.batch] * 2)
    found: list[tuple[float, ...]] = []
    requests = 0
    for _ in range(rounds):
        noop, _ = _served_cpu(served, NOOP, bodies, clients, seconds)
        before = served.counters(MODEL).batches
        handler, count = _served_cpu(served, MODEL, bodies, clients, seconds)
        sizes = list(mixed(served.counters(MODEL).batches - before))
        found.append((noop, *_parts(served, bodies, sizes or [served.batch] * (count // served.batch + 1)), handler))
        requests += count
    medians = [statistics.median(values) for values in zip(*found, strict=True)]
    return Overhead(clients, requests, *medians)


def _served_cpu(served: Serving, model: str, bodies: Sequence[Sent], clients: int, seconds: float) -> tuple[float, int]:
    """Return processor milliseconds a request of the whole server, and how many were answered."""
    before = Footprint.of(served.frontend).cpu_s
    load = served.loaded(model, bodies, clients, seconds)
    return (Footprint.of(served.frontend).cpu_s - before) * 1e3 / load.requests, load.requests


def mixed(counts: Mapping[int, int]) -> Iterator[int]:
    """Yield each size as often as it was counted, the rare ones among the frequent ones."""
    places = ((place + 0.5) / count for count in counts.values() for place in range(count))
    sizes = (size for size, count in counts.items() for _ in range(count))
    return (size for _, size in sorted(zip(places, sizes, strict=True)))


def _parts(served: Serving, bodies: Sequence[Sent], sizes: Sequence[int]) -> tuple[float, float]:
    """Return processor milliseconds an item of decode + prepare, and of inference, in batches of ``sizes``."""
    manifest = served.predictor.manifest
    turn = itertools.cycle(bodies)
    read = infer = 0.0
    for size in sizes:
        start = time.process_time()
        tensors = []
        for sent in itertools.islice(turn, size):
            pixels = decode(sent.body)
            check_input(pixels, manifest.input, manifest.prep)
            tensors.append(prepare(pixels, manifest.prep).tensor)
        middle = time.process_time()
        run_batched(served.predictor.runtime, np.concatenate(tensors), ["score"])
        infer += time.process_time() - middle
        read += middle - start
    count = sum(sizes)
    return read * 1e3 / count, infer * 1e3 / count
