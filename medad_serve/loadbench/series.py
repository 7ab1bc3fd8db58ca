"""A series as one request beside its files in this process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from medad_serve.errors import InputError, MedadError
from medad_serve.loadbench.closed_loop import Sent
from medad_serve.loadbench.footprint import Footprint
from medad_serve.loadbench.served import MODEL, NOOP, Serving


@dataclass(frozen=True)
class Series:
    """Slices a second of one series as one request, medians over rounds."""

    slices: int
    http: float
    in_process: float
    noop: float
    """Over HTTP, of the handler that does nothing: what the bytes alone cost."""
    http_cpu_ms: float
    """Processor time a slice, of the server; where other work holds the cores it says more than the speed."""
    in_process_cpu_ms: float

    @property
    def ratio(self) -> float:
        """What is left of the speed by serving."""
        return self.http / self.in_process


def measure_series(served: Serving, series: Sent, files: Sequence[bytes], *, rounds: int = 10) -> Series:
    """Time one series over HTTP, packed as the client does, its files in this process, and its bytes alone, in turn."""
    target = served.target(MODEL)
    target.check(series)
    answer = served.predictor.predict([tuple(files)])[0]
    if isinstance(answer, InputError):
        raise answer
    count = len(answer.slices or (answer,))
    floor = served.target(NOOP)
    floor.check(series)
    connection, other = target.connect(), floor.connect()
    taken: list[tuple[float, ...]] = []
    for _ in range(rounds + 1):
        before, start = Footprint.of(served.frontend).cpu_s, time.perf_counter()
        answered = target.send(connection, series)
        http = time.perf_counter() - start
        http_cpu = Footprint.of(served.frontend).cpu_s - before
        before, start = time.process_time(), time.perf_counter()
        served.predictor.predict([tuple(files)])
        in_process, in_process_cpu = time.perf_counter() - start, time.process_time() - before
        start = time.perf_counter()
        echoed = floor.send(other, series)
        taken.append((http, in_process, time.perf_counter() - start, http_cpu, in_process_cpu))
        if (answered.status, echoed.status) != (200, 200):
            raise MedadError("the server did not answer every request", f"See {served.server.logs}")
    connection.close()
    other.close()
    columns = list(zip(*taken[1:], strict=True))
    speeds = [count / statistics.median(seconds) for seconds in columns[:3]]
    costs = [statistics.mean(seconds) * 1e3 / count for seconds in columns[3:]]
    return Series(count, *speeds, *costs)
