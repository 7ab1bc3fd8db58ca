"""``sagemaker train`` and ``sagemaker deploy``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from medad_serve.cli.console import out, say
from medad_serve.errors import MedadError


@click.group()
def sagemaker() -> None:
    """Train and serve on Amazon SageMaker (pip install 'medad-serve[aws]').

    The image is one with medad-serve in it and the entry point 'python -m medad_serve.sagemaker'.
    """


def _pairs(texts: tuple[str, ...]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts:
        channel, equals, place = text.partition("=")
        if not equals:
            raise MedadError(f"{text!r} is no channel", "Write train=s3://BUCKET/FOLDER")
        if channel in pairs:
            raise MedadError(f"channel {channel} is given twice", "Keep one of them")
        pairs[channel] = place
    return pairs


@sagemaker.command()
@click.argument("model", required=False)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--image", required=True, help="Image in ECR with medad-serve in it.")
@click.option("--role", required=True, help="ARN of the role that the job has.")
@click.option("--instance", required=True, help="Instance type, e.g. ml.g4dn.xlarge.")
@click.option("--data", multiple=True, required=True, metavar="CHANNEL=S3", help="train=s3://...; val, test likewise.")
@click.option("--output", required=True, metavar="S3", help="Where model.tar.gz goes.")
@click.option("--checkpoints", metavar="S3", help="Where checkpoints are kept; a job with the same ones goes on.")
@click.option("--config", help="A recipe that comes with the package, or a YAML file.")
@click.option("--layout", default="folders", show_default=True, help="How the channels are laid out.")
@click.option("--format", "formats", multiple=True, default=("onnx",), show_default=True)
@click.option("--serve-as", "served_name", help="Name of the served model [default: the experiment's].")
@click.option("--name", help="Name of the job [default: model and time].")
@click.option("--spot", is_flag=True, help="On spare machines that AWS may take back: cheaper.")
@click.option("--hours", type=click.FloatRange(0.1, 120), default=24.0, show_default=True, help="Longest run.")
@click.option("--volume", "volume_gb", type=click.IntRange(1), default=50, show_default=True, help="Disk in GB.")
@click.option("--region", help="AWS region [default: the profile's].")
@click.option("--wait", is_flag=True, help="Stay until the job has ended.")
@click.option("--dry-run", is_flag=True, help="Print the request; ask nobody.")
def train(
    model: str | None,
    overrides: tuple[str, ...],
    data: tuple[str, ...],
    config: str | None,
    region: str | None,
    wait: bool,
    dry_run: bool,
    **how: Any,
) -> None:
    """Train MODEL, or that of --config, as a SageMaker job: the same training as 'medad-serve train'."""
    from medad_serve.sagemaker import order
    from medad_serve.sagemaker.service import client
    from medad_serve.training.config import model_named

    name, overrides = model_named(model, config, overrides)
    asked = order.Order(model=name, overrides=overrides, data=_pairs(data), config=config, **how)
    request = order.training_request(asked)
    if dry_run:
        out.print(json.dumps(request, indent=1), markup=False)
        return
    made = client("sagemaker", region)
    arn = order.submit(made, request)
    say(f"submitted {request['TrainingJobName']}. That the image starts is not known yet: --wait tells")
    out.print(arn, markup=False)
    if wait:
        out.print(order.wait(made, request["TrainingJobName"], say), markup=False)


@sagemaker.command()
@click.argument("archive", metavar="ARCHIVE.mar|STORE", type=click.Path(path_type=Path))
@click.option("--image", required=True, help="Image in ECR with medad-serve in it.")
@click.option("--role", required=True, help="ARN of the role that the endpoint has.")
@click.option("--to", required=True, metavar="S3", help="Folder that model.tar.gz is uploaded below.")
@click.option("--instance", help="Instance type, e.g. ml.m5.large.")
@click.option("--count", type=click.IntRange(1), default=1, show_default=True, help="Instances.")
@click.option(
    "--serverless", "serverless_mb", type=click.IntRange(1024, 6144), metavar="MB", help="Memory, no instance."
)
@click.option("--concurrency", type=click.IntRange(1, 200), default=5, show_default=True, help="Of serverless.")
@click.option("--name", help="Name of the endpoint [default: the archive's]; one that is there is updated.")
@click.option("--region", help="AWS region [default: the profile's].")
@click.option("--wait", is_flag=True, help="Stay until the endpoint serves.")
@click.option("--dry-run", is_flag=True, help="Print the requests; ask nobody.")
def deploy(archive: Path, region: str | None, wait: bool, dry_run: bool, **how: Any) -> None:
    """Serve an archive on a SageMaker endpoint, with the handler and the cutoffs that are in it."""
    from medad_serve.sagemaker import deploy as hosting
    from medad_serve.sagemaker.service import client

    asked = hosting.Deployment(archive=hosting.find_archive(archive), **how)
    made = hosting.requests(asked)
    if dry_run:
        out.print(json.dumps(made, indent=1), markup=False)
        return
    service = client("sagemaker", region)
    arn = hosting.deploy(asked, made, service, client("s3", region), say)
    say(
        "Send files as application/octet-stream. SageMaker passes no header of ours: X-Medad-Heatmap goes as a field"
        " of a multipart body. That the image starts is not known yet: --wait tells"
    )
    out.print(arn, markup=False)
    if wait:
        hosting.wait(service, asked.endpoint, say)
