"""``health``: whether every model of a running server can be asked."""

from __future__ import annotations

import json
from pathlib import Path

import click

from medad_serve.cli.serving import FILE, FOLDER, STORE


@click.command()
@click.option("--store", type=FOLDER, default=STORE, show_default=True, help="Of the server, on this machine.")
@click.option("--inference-port", type=click.IntRange(1, 65535), help="Default: that of config.properties (8080).")
@click.option("--management-url", help="Ask any TorchServe there instead, by its management API.")
@click.option("--key-file", type=FILE, help="With --management-url: its key_file.json.")
@click.option("--ca", type=FILE, help="With an https --management-url: PEM file of the server's certificate.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def health(
    store: Path,
    inference_port: int | None,
    management_url: str | None,
    key_file: Path | None,
    ca: Path | None,
    as_json: bool,
) -> None:
    """Tell whether every model of a server has a worker that is ready; exit with 1 where one has none."""
    from medad_serve.errors import MedadError
    from medad_serve.server import Management, Server, health_of
    from medad_serve.server.logs import Logs
    from medad_serve.server.tls import trusting

    if management_url is None:
        if key_file or ca:
            raise click.UsageError("Give --key-file and --ca with --management-url.")
        server = Server.running_at(store, inference_port)
        management, names, logs = server.management(), server.models(), Logs(server.run_dir)
    else:
        management, names = Management(management_url, key_file, trusting(ca) if ca else True), None
        logs = None
    with management:
        found = health_of(management, names)
    if as_json:
        click.echo(json.dumps(found.to_json()))
    else:
        for name, workers in found.models.items():
            if workers.ready:
                click.echo(f"{name}: {workers.ready} of {workers.wanted} workers ready")
    if not found.models:
        raise MedadError(f"no model is registered at {management.url}", "Start it with: medad-serve serve --model NAME")
    if found.lost:
        fault = f"no worker of {', '.join(found.lost)} is ready"
        raise logs.failure(fault, found.lost[0]) if logs else MedadError(fault, "The server's ts_log.log says why")
