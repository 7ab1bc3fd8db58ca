"""What serving costs beside its parts, measured in turn in one run so that other work disturbs all alike."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import httpx
import numpy as np
import psutil

from medad_serve.errors import InputError, MedadError
from medad_serve.export.archive import archive
from medad_serve.export.inspection import HANDLER
from medad_serve.export.store import PROPERTIES
from medad_serve.io import decode
from medad_serve.loadbench.closed_loop import Sent, Target, put_load
from medad_serve.loadbench.footprint import Footprint
from medad_serve.predictor import Predictor
from medad_serve.prep import check_input, prepare
from medad_serve.runtime import run_batched
from medad_serve.server import Ports, Server
from medad_serve.serving.resources import cores

MODEL, NOOP = "model", "noop"
WARM_S = 20.0
"""Java compiles what it runs often: in its first half minute a request costs it up to three times as much."""


@dataclass(frozen=True)
class Serving:
    """A server of our own, over one artifact and a handler that does nothing, both archived alike."""

    server: Server
    frontend: psutil.Process
    predictor: Predictor
    batch: int

    def target(self, model: str) -> Target:
        """Return how to reach ``MODEL`` or ``NOOP``."""
        key = json.loads(self.server.key_file.read_text())["inference"]["key"]
        return Target(self.server.url("inference"), model, key)


@contextmanager
def serving(artifact: Path, *, workers: int = 1, batch_size: int = 8, max_batch_delay_ms: int = 1) -> Iterator[Serving]:
    """Serve an artifact from a store of its own, and beside it the handler that does nothing, until the end."""
    with ExitStack() as stack:
        store = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="medad-bench-")))
        mar = archive(
            artifact, store, name=MODEL, workers=workers, batch_size=batch_size, max_batch_delay_ms=max_batch_delay_ms
        )
        _without_handler(mar, store / f"{NOOP}.mar")
        settings = (store / PROPERTIES).read_text(encoding="utf-8")
        opened = settings.replace("enable_model_api=false", "enable_model_api=true")  # `serve` would refuse the other
        (store / PROPERTIES).write_text(opened, encoding="utf-8")
        server = Server(store, Ports.free())
        server.start([MODEL])
        stack.callback(server.stop, drain=0)
        _register(server, NOOP)
        frontend = server.process()
        if frontend is None:
            raise MedadError("TorchServe ended by itself", f"See {server.logs}")
        predictor = Predictor.load(artifact, threads=max(1, cores() // workers))  # as the handler divides the cores
        yield Serving(server, frontend, predictor, batch_size)


def _without_handler(mar: Path, target: Path) -> None:
    """Copy an archive with the handler that does nothing in place of its own."""
    noop = files("medad_serve.loadbench").joinpath("noop_handler.py").read_bytes()
    with zipfile.ZipFile(mar) as source, zipfile.ZipFile(target, "w") as copy:
        for info in source.infolist():
            copy.writestr(info, noop if info.filename == HANDLER else source.read(info))


def _register(server: Server, name: str) -> None:
    key = json.loads(server.key_file.read_text())["management"]["key"]
    asked = {"url": f"{name}.mar", "model_name": name, "initial_workers": "1", "synchronous": "true"}
    answer = httpx.post(
        f"{server.url('management')}/models",
        params=asked,
        headers={"Authorization": f"Bearer {key}"},
        timeout=300,
        trust_env=False,
    )
    if answer.status_code != 200:
        raise MedadError(f"TorchServe does not load {name}: {answer.text[:200]}", f"See {server.logs}")


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
    """Compare handler, no-op handler and the parts in this process, in rounds of ``seconds`` for each handler."""
    for model in (MODEL, NOOP):
        served.target(model).check(bodies[0])
        put_load(served.target(model), bodies, clients, min(2 * seconds, WARM_S))
    _parts(served, bodies, 2 * served.batch)
    found: list[tuple[float, ...]] = []
    requests = 0
    for _ in range(rounds):
        noop, _ = _served_cpu(served, NOOP, bodies, clients, seconds)
        handler, count = _served_cpu(served, MODEL, bodies, clients, seconds)
        found.append((noop, *_parts(served, bodies, count), handler))
        requests += count
    medians = [statistics.median(values) for values in zip(*found, strict=True)]
    return Overhead(clients, requests, *medians)


def _served_cpu(served: Serving, model: str, bodies: Sequence[Sent], clients: int, seconds: float) -> tuple[float, int]:
    """Return processor milliseconds a request of the whole server, and how many were answered."""
    before = Footprint.of(served.frontend).cpu_s
    load = put_load(served.target(model), bodies, clients, seconds)
    if load.errors:
        raise MedadError(f"the server did not answer all: {load.errors}", f"See {served.server.logs}")
    return (Footprint.of(served.frontend).cpu_s - before) * 1e3 / load.requests, load.requests


def _parts(served: Serving, bodies: Sequence[Sent], count: int) -> tuple[float, float]:
    """Return processor milliseconds an item of decode + prepare, and of inference in full batches."""
    manifest = served.predictor.manifest
    read = infer = 0.0
    done = 0
    while done < count:
        size = min(served.batch, count - done)
        start = time.process_time()
        tensors = []
        for number in range(done, done + size):
            pixels = decode(bodies[number % len(bodies)].body)
            check_input(pixels, manifest.input, manifest.prep)
            tensors.append(prepare(pixels, manifest.prep).tensor)
        middle = time.process_time()
        run_batched(served.predictor.runtime, np.concatenate(tensors), ["score"])
        infer += time.process_time() - middle
        read += middle - start
        done += size
    return read * 1e3 / count, infer * 1e3 / count


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
