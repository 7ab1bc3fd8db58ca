"""``drift``: what the workers of a server say of their recent scores."""

from __future__ import annotations

import re
from pathlib import Path

import click

from medad_serve.errors import MedadError

Reading = dict[str, float]
_GAUGE = re.compile(r'^medad_drift_(\w+)\{model_name="([^"]*)",worker="([^"]*)".*\} (\S+)$', re.MULTILINE)


@click.command()
@click.option("--url", default="http://127.0.0.1:8082", show_default=True, help="Metrics address of the server.")
@click.option("--ca", type=click.Path(path_type=Path), help="PEM file of an https server's certificate.")
def drift(url: str, ca: Path | None) -> None:
    """Show how far the scores of a running server have drifted from its models' calibrations.

    Exits with 1 where a worker is in alarm.
    """
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 10_000  # a line a worker for whatever reads it
    readings = read_gauges(_scraped(f"{url.rstrip('/')}/metrics", ca))
    table = Table("model", "worker", "patients", "anomalous", "KS", "PSI", "", box=None, pad_edge=False)
    for (model, worker), reading in sorted(readings.items()):
        levels = [f"{reading[name]:.3f} of {reading[f'{name}_alarm_level']:.3f}" for name in ("ks", "psi")]
        known = reading["ks_alarm_level"] > 0
        state = "[bold]alarm[/]" if reading["alarm"] else "usual" if known else "too few to tell"
        share = f"{reading['share_anomalous']:.1%}"
        table.add_row(model, worker, f"{reading['patients']:.0f}", share, *(levels if known else ("", "")), state)
    console.print(table)
    if any(reading["alarm"] for reading in readings.values()):
        raise SystemExit(1)


def read_gauges(text: str) -> dict[tuple[str, str], Reading]:
    """Return the gauges of each model's workers; raises MedadError where there are none."""
    readings: dict[tuple[str, str], Reading] = {}
    for name, model, worker, value in _GAUGE.findall(text):
        readings.setdefault((model, worker), {})[name] = float(value)
    if not readings:
        raise MedadError("no worker tells of drift there", "Name the metrics address of a medad-serve server")
    return readings


def _scraped(url: str, ca: Path | None) -> str:
    import httpx

    from medad_serve.server.tls import trusting

    try:
        answer = httpx.get(url, verify=trusting(ca) if ca else True, timeout=10)
        answer.raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = str(error) or type(error).__name__
        raise MedadError(f"{url} cannot be read ({reason})", "Check --url: the metrics port, not 8080") from None
    return answer.text
