"""A series as one request beside its files in this process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from medad_serve.errors import InputError
from medad_serve.loadbench.closed_loop import Sent
from medad_serve.loadbench.footprint import Footprint
from medad_serve.loadbench.served import MODEL, Serving


@dataclass(frozen=True)
class Series:
    """Slices a second of one series as one request, medians over rounds."""

    slices: int
    http: float
    in_process: float
    http_cpu_ms: float
    """Processor time a slice, of the server; where other work holds the cores it says more than the speed."""
    in_process_cpu_ms: float

    @property
    def ratio(self) -> float:
        """What is left of the speed by serving."""
        return self.http / self.in_process


def measure_series(served: Serving, series: Sent, files: Sequence[bytes], *, rounds: int = 10) -> Series:
    """Time one series, packed as the client does, over HTTP by one client, and its files in this process, in turn."""
    target = served.target(MODEL)
    target.check(series)
    answer = served.predictor.predict([tuple(files)])[0]
    if isinstance(answer, InputError):
        raise answer
    count = len(answer.slices or (answer,))
    connection = target.connect()
    taken: list[tuple[float, ...]] = []
    for _ in range(rounds + 1):
        before, start = Footprint.of(served.frontend).cpu_s, time.perf_counter()
        target.send(connection, series)
        http = time.perf_counter() - start
        http_cpu = Footprint.of(served.frontend).cpu_s - before
        before, start = time.process_time(), time.perf_counter()
        served.predictor.predict([tuple(files)])
        taken.append((http, time.perf_counter() - start, http_cpu, time.process_time() - before))
    connection.close()
    speeds = [count / statistics.median(seconds) for seconds in list(zip(*taken[1:], strict=True))[:2]]
    costs = [statistics.mean(seconds) * 1e3 / count for seconds in list(zip(*taken[1:], strict=True))[2:]]
    return Series(count, *speeds, *costs)
