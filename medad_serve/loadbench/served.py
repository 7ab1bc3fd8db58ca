"""A server of our own over one artifact, beside the handler that does nothing."""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import httpx
import psutil

from medad_serve.errors import MedadError
from medad_serve.export.archive import archive
from medad_serve.export.inspection import HANDLER
from medad_serve.export.store import PROPERTIES
from medad_serve.loadbench.closed_loop import Load, Sent, Target, put_load
from medad_serve.loadbench.counters import Counters, read_counters
from medad_serve.predictor import Predictor
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

    def target(self, model: str, *, timed: bool = False) -> Target:
        """Return how to reach ``MODEL`` or ``NOOP``; ``timed`` asks for the times of stages."""
        key = json.loads(self.server.key_file.read_text())["inference"]["key"]
        return Target(self.server.url("inference"), model, key, timed=timed)

    def counters(self, model: str) -> Counters:
        """Read TorchServe's counters of a model."""
        found = read_counters(self.server.url("metrics"), model)
        if found is None:
            raise MedadError("TorchServe tells no metrics", f"See {self.server.logs}")
        return found

    def loaded(self, model: str, bodies: Sequence[Sent], clients: int, seconds: float, *, timed: bool = False) -> Load:
        """Put load on a model; raises MedadError unless all of it is answered."""
        load = put_load(self.target(model, timed=timed), bodies, clients, seconds)
        if load.errors or not load.requests:
            raise MedadError(f"the server did not answer all: {load.errors or 'none'}", f"See {self.server.logs}")
        return load

    def warm_up(self, bodies: Sequence[Sent], clients: int, seconds: float) -> None:
        """Load both models until Java has compiled what they run."""
        for model in (MODEL, NOOP):
            self.target(model).check(bodies[0])
            self.loaded(model, bodies, clients, min(seconds, WARM_S))


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
