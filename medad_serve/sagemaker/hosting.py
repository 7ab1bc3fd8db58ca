"""Serving in a SageMaker container: TorchServe on port 8080 without tokens, since SageMaker itself asks who calls.

SageMaker unpacks model.tar.gz into ``/opt/ml/model``, runs the image with the argument ``serve``, asks
``GET /ping`` and sends ``POST /invocations``, which TorchServe answers itself. Two kinds of image will do, both
with medad-serve installed: one whose entry point is ``python -m medad_serve.sagemaker``, and TorchServe's own,
which reads the settings that ``TS_CONFIG_FILE`` names.
"""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from medad_serve.errors import MedadError
from medad_serve.export.store import INDEX, LOGGING, PROPERTIES, private_logging, read_properties
from medad_serve.files import write_whole
from medad_serve.sagemaker.container import ROOT, root_of
from medad_serve.server import Ports, Server

STORE = ROOT / "model"
SETTINGS = f"{STORE}/{PROPERTIES}"
PORT = 8080


def hosting_settings(archive: str, store: Path = STORE) -> dict[str, str]:
    """Return TorchServe's settings for one archive that will lie in ``store``."""
    packaged = read_properties(Path(str(files("medad_serve").joinpath(PROPERTIES))))
    return packaged | {
        "inference_address": f"http://0.0.0.0:{PORT}",
        # SageMaker lets in whom IAM does, and its health check bears no token.
        "disable_token_authorization": "true",
        "allowed_urls": f"file://{store}/.*",
        "vmargs": f"-Dlog4j.configurationFile={store}/{LOGGING}",
        "model_store": str(store),
        "load_models": archive,
    }


def write_settings(folder: Path, archive: str, store: Path = STORE) -> None:
    """Write settings and logging of the server into ``folder``, which will be ``store`` when it is served."""
    lines = [f"{key}={value}" for key, value in hosting_settings(archive, store).items()]
    write_whole(folder / PROPERTIES, "\n".join(lines) + "\n")
    write_whole(folder / LOGGING, private_logging())


def serve(environ: Mapping[str, str]) -> None:
    """Serve the archive of the container until it is stopped; its digest is checked against the index beside it.

    The model's folder is read-only there, so that the server works on a copy. Raises MedadError where there is
    not one archive, or it does not verify or load.
    """
    model = root_of(environ) / "model"
    archives = sorted(model.glob("*.mar"))
    if len(archives) != 1:
        raise MedadError(f"{model} holds {len(archives)} archives, one is served", "Pack one .mar into model.tar.gz")
    port = int(environ.get("SAGEMAKER_BIND_TO_PORT") or PORT)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the container's stop is a Ctrl-C
    with tempfile.TemporaryDirectory(prefix="medad-serve-") as beside:
        store = Path(beside)
        for path in (archives[0], model / INDEX):
            if path.is_file():
                shutil.copyfile(path, store / path.name)
        write_settings(store, archives[0].name, store)
        server = Server(store, Ports(inference=port, management=_port(environ, 1), metrics=_port(environ, 2)))
        try:
            server.start([archives[0].stem], foreground=True)
            server.wait()
        except KeyboardInterrupt:
            if server.process() is not None:
                server.stop()


def _port(environ: Mapping[str, str], offset: int) -> int | None:
    """Return a port beside the one that SageMaker binds, so that several containers share a host."""
    bound = environ.get("SAGEMAKER_BIND_TO_PORT")
    return int(bound) + offset if bound else None
