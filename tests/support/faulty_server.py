"""A stand-in for TorchServe that fails by a script, then answers."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ANSWER = {"model": "stand-in", "score": 1.0, "p_value": 0.5, "cutoff": 2.0, "anomalous": False}
DIED = {"code": 500, "type": "InternalServerException", "message": "Worker died."}
"""What TorchServe answers the requests of a batch whose worker ends."""


@dataclass(frozen=True)
class Fault:
    """What happens to one request: an answer of some status, silence, or a connection that ends."""

    status: int = 503
    body: dict[str, Any] = field(default_factory=lambda: {"code": 503, "message": "busy"})
    headers: dict[str, str] = field(default_factory=dict)
    drops: bool = False
    """The connection ends before any answer."""
    cut: bool = False
    """The connection ends within the answer."""
    delay_s: float = 0


DROP = Fault(drops=True)
CUT = Fault(status=200, body=ANSWER, cut=True)
BUSY = Fault()
DEATH = Fault(status=500, body=DIED)


@dataclass(eq=False)
class _Present:
    """A request that shares its batch with others."""

    body: bytes
    dies: bool = False


class FaultyServer(ThreadingHTTPServer):
    """Meets each request with the next fault of ``script``, and answers once there are none left."""

    daemon_threads = True

    def __init__(self, script: Sequence[Fault], port: int = 0, context: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.script = list(script)
        self.met: list[float] = []
        """When each request came, seconds."""
        self.bodies: list[bytes] = []
        """Of the requests that were answered."""
        self.deadly: set[bytes] = set()
        """Bodies that end the worker, and with it every request that is there at the time."""
        self.lock = threading.Lock()
        self.present: list[_Present] = []
        self.connections: set[socket.socket] = set()
        self.scheme = "https" if context else "http"
        if context:
            self.socket = context.wrap_socket(self.socket, server_side=True)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def server_close(self) -> None:
        """End the connections, too, as a process that ends does."""
        super().server_close()
        for connection in self.connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet: apart, the second would wait for the first's acknowledgement
    server: FaultyServer

    def do_POST(self) -> None:
        body = self._body()
        with self.server.lock:
            self.server.met.append(time.monotonic())
            fault = self.server.script.pop(0) if self.server.script else None
        if fault is None:
            fault = Fault(status=200, body=ANSWER)
            with self.server.lock:
                self.server.bodies.append(body)
        if self.server.deadly and self._shares_a_death(body):
            fault = DEATH
        time.sleep(fault.delay_s)
        if fault.drops:
            self.close_connection = True
            return
        said = json.dumps(fault.body).encode()
        self.send_response(fault.status)
        for name, value in {"Content-Length": str(len(said)), **fault.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(said[: len(said) // 2] if fault.cut else said)
        self.wfile.flush()
        self.close_connection = fault.cut

    def _shares_a_death(self, body: bytes) -> bool:
        """Wait for a batch; whether this request, or one that was there meanwhile, ends the worker."""
        ours = _Present(body)
        with self.server.lock:
            self.server.present.append(ours)
            if any(each.body in self.server.deadly for each in self.server.present):
                for each in self.server.present:
                    each.dies = True
        time.sleep(0.05)
        with self.server.lock:
            self.server.present.remove(ours)
        return ours.dies

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers["Content-Length"]))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def log_message(self, *_: object) -> None:
        """Stay silent."""


@contextmanager
def faulty_server(*script: Fault, port: int = 0, context: ssl.SSLContext | None = None) -> Iterator[FaultyServer]:
    """Run a stand-in in a thread of this process."""
    server = FaultyServer(script, port, context)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
