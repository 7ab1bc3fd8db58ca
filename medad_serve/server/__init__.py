"""Start, watch and stop TorchServe over a model store."""

from medad_serve.server.server import Server
from medad_serve.server.settings import Ports, run_directory
from medad_serve.server.tls import Tls

__all__ = ["Ports", "Server", "Tls", "run_directory"]
