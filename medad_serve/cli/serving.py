"""``archive``, ``serve`` and ``java-home``."""

from __future__ import annotations

import signal
from pathlib import Path

import click

STORE = Path("model_store")
FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.argument("artifact", type=FOLDER)
@click.option("--store", type=FOLDER, default=STORE, show_default=True, help="Where the .mar file lands.")
@click.option("--name", help="Model name in the URL; the artifact's own unless given.")
@click.option("--runtime", help="e.g. onnx, torchscript, openvino/int8 [default: as tuned, else onnx].")
@click.option("--workers", type=click.IntRange(1), help="Processes (about 0.6 GB each) [default: as tuned, else 1].")
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True, help="Most requests in one batch.")
@click.option("--max-batch-delay", type=click.IntRange(0), default=1, show_default=True, help="Milliseconds.")
@click.option("--response-timeout", type=click.IntRange(1), default=120, show_default=True, help="Seconds.")
@click.option(
    "--limit", "limits", multiple=True, metavar="NAME=VALUE", help="Of what one request may hold, e.g. max_frames=512."
)
def archive(
    artifact: Path,
    store: Path,
    name: str | None,
    runtime: str | None,
    workers: int | None,
    batch_size: int,
    max_batch_delay: int,
    response_timeout: int,
    limits: tuple[str, ...],
) -> None:
    """Pack ARTIFACT, an exported model or the run that it lies in, as a .mar file for TorchServe."""
    from medad_serve.artifact import locate
    from medad_serve.export.archive import archive as pack

    mar = pack(
        locate(artifact),
        store,
        name=name,
        runtime=runtime,
        workers=workers,
        batch_size=batch_size,
        max_batch_delay_ms=max_batch_delay,
        response_timeout_s=response_timeout,
        limits=dict(_name_and_value(limit) for limit in limits),
    )
    click.echo(mar)


def _name_and_value(limit: str) -> tuple[str, str]:
    name, equals, value = limit.partition("=")
    if not equals:
        raise click.UsageError(f"--limit takes NAME=VALUE, e.g. max_frames=512, not {limit!r}.")
    return name, value


@click.command("java-home")
def java_home() -> None:
    """Print the JAVA_HOME that TorchServe can run on."""
    from medad_serve import java

    click.echo(java.java_home())


@click.command()
@click.option("--model", "models", multiple=True, metavar="NAME", help="Serve this one; repeat for more. Default: all.")
@click.option("--store", type=FOLDER, default=STORE, show_default=True, help="Where the .mar files are.")
@click.option("--inference-port", type=click.IntRange(1, 65535), help="Default: that of config.properties (8080).")
@click.option("--management-port", type=click.IntRange(1, 65535), help="Likewise (8081).")
@click.option("--metrics-port", type=click.IntRange(1, 65535), help="Likewise (8082).")
@click.option("--tls-cert", type=FILE, help="Speak TLS with this certificate (PEM, its chain after it).")
@click.option("--tls-key", type=FILE, help="Its RSA key (PEM, no passphrase, readable by its owner alone).")
@click.option("--timeout", type=click.FloatRange(1), default=300, show_default=True, help="Seconds to be ready in.")
@click.option(
    "--drain",
    type=click.FloatRange(0),
    default=10,
    show_default=True,
    help="Seconds that requests under way get at a stop.",
)
@click.option("--foreground", is_flag=True, help="Stay and show the log; Ctrl-C and SIGTERM stop the server.")
@click.option(
    "--give-up-after",
    type=click.FloatRange(1),
    default=180,
    show_default=True,
    help="With --foreground: end with 1 once a model has had no ready worker for so many seconds.",
)
@click.option("--stop", is_flag=True, help="Stop the server of this store and port.")
def serve(
    models: tuple[str, ...],
    store: Path,
    inference_port: int | None,
    management_port: int | None,
    metrics_port: int | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    timeout: float,
    drain: float,
    foreground: bool,
    give_up_after: float,
    stop: bool,
) -> None:
    """Start TorchServe over a model store, and return once every model is ready."""
    from medad_serve.server import Ports, Server, Tls

    if (tls_cert is None) != (tls_key is None):
        raise click.UsageError("Give --tls-cert and --tls-key together.")
    tls = Tls(tls_cert, tls_key) if tls_cert and tls_key else None
    if stop:
        server = Server.running_at(store, inference_port)
        server.stop(drain=drain)
        click.echo(f"Stopped the server at {server.url('inference')}")
        return
    server = Server(store, Ports(inference_port, management_port, metrics_port), tls)
    if foreground:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a supervisor's stop is a Ctrl-C
    try:
        names = server.start(models, timeout=timeout, foreground=foreground)
        for name, error in server.refused.items():
            click.secho(f"NOT SERVED: {name}: {error}", fg="red", err=True)
        click.echo(f"Serving {', '.join(names)} at {server.url('inference')}")
        click.echo(f"Tokens: {server.key_file}")
        click.echo(f"Logs: {server.logs}")
        if foreground:
            server.wait(give_up_after=give_up_after)
    except KeyboardInterrupt:
        if not foreground:
            raise
        if server.process() is not None:
            server.stop(drain=drain)
