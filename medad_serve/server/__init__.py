"""Start, watch and stop TorchServe over a model store."""

from medad_serve.server.health import Health, Watch, health_of
from medad_serve.server.management import Management
from medad_serve.server.server import GIVE_UP_S, Server
from medad_serve.server.settings import Ports, run_directory
from medad_serve.server.tls import Tls

__all__ = ["GIVE_UP_S", "Health", "Management", "Ports", "Server", "Tls", "Watch", "health_of", "run_directory"]
