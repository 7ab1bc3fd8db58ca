"""Ask SageMaker for a training: the request, its submission, and waiting for its end.

A job needs what cannot be made up here: an image in ECR with medad-serve in it, a role that SageMaker may
assume and that may read and write the buckets, and a quota for the instance. AWS alone can check those.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from medad_serve.errors import MedadError
from medad_serve.models import family
from medad_serve.sagemaker.container import ROLES, ROOT, JobOptions
from medad_serve.sagemaker.service import call, check_request
from medad_serve.spec import read_yaml
from medad_serve.training.config import parse_overrides, resolve

Say = Callable[[str], None]
_TERMS = ("loss", "l2_loss", "ssim_loss", "segmentation_loss", "severity_loss", "severity_mae")
METRICS = (
    *(f"{stage}/{term}" for stage in ("train", "val") for term in _TERMS),
    *("val/auroc", "val/auprc", "val/accuracy", "test/auroc", "test/auprc"),
)
"""Figures that SageMaker reads off the log; CloudWatch knows them by these names."""
_NUMBER = r"([0-9.]+(?:e[-+]?[0-9]+)?)"
_ELSEWHERE = ("device=", "logger=", "init=")
"""Begin settings that can only be checked where the job runs."""
ENTRYPOINT = ["python", "-m", "medad_serve.sagemaker"]
_DONE = ("Completed", "Failed", "Stopped")


@dataclass(frozen=True)
class Order:
    """A training that is asked for."""

    model: str
    overrides: tuple[str, ...]
    data: Mapping[str, str]
    """S3 address of each channel."""
    image: str
    role: str
    instance: str
    output: str
    """S3 folder that model.tar.gz goes below."""
    checkpoints: str | None = None
    config: str | None = None
    layout: str = "folders"
    formats: tuple[str, ...] = ("onnx",)
    served_name: str | None = None
    name: str | None = None
    """Of the job; made of model and time unless given."""
    spot: bool = False
    hours: float = 24
    volume_gb: int = 50


def hyperparameters(order: Order) -> dict[str, str]:
    """Return everything that the job is told, as texts; a configuration file becomes the settings that it holds.

    Raises MedadError for settings that the model does not have or cannot be built with.
    """
    config, given = order.config, dict(pair.partition("=")[::2] for pair in order.overrides)
    if config and Path(config).is_file():
        stored = {k: v for k, v in _dotted(read_yaml(Path(config))).items() if k != "model"}
        given, config = stored | given, None
    pairs = [f"{key}={text}" for key, text in given.items()]
    chosen = family(order.model)
    if chosen.builds_on or "init" in given:
        parse_overrides(pairs, order.model)
    else:
        local = [pair for pair in pairs if not pair.startswith(_ELSEWHERE)]
        resolve(order.model, f"{order.layout}:{ROOT}/input/data", config, local)
    own = {"model": order.model, "layout": order.layout, "formats": ",".join(order.formats)}
    own |= {"config": config} if config else {}
    own |= {"name": order.served_name} if order.served_name else {}
    if clash := given.keys() & JobOptions.model_fields.keys():
        raise MedadError(f"{min(clash)} is set by an option", "Remove it from the settings")
    return own | given


def _dotted(data: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    out: dict[str, str] = {}
    for key, value in data.items():
        if isinstance(value, dict):
            out.update(_dotted(value, f"{prefix}{key}."))
        else:
            out[prefix + key] = value if isinstance(value, str) else json.dumps(value)
    return out


def plain_name(text: str) -> str:
    """Return a text as SageMaker names things: letters, digits and single hyphens."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")


def stamped(name: str) -> str:
    """Return a name that nobody has, of at most 63 characters."""
    return f"{plain_name(name)[:47]}-{datetime.now().strftime('%Y%m%d-%H%M%S')}"


def training_request(order: Order) -> dict[str, Any]:
    """Return the CreateTrainingJob request, checked against the service's model."""
    if unknown := [name for name in order.data if name.lower() not in ROLES]:
        raise MedadError(f"there is no channel {unknown[0]!r}", "Choose of: train, val, test")
    if order.spot and not order.checkpoints:
        raise MedadError("a spot job without checkpoints starts over when it is interrupted", "Give --checkpoints")
    for place in (*order.data.values(), order.output, *([order.checkpoints] if order.checkpoints else [])):
        if not re.fullmatch(r"s3://[^/]+(/.*)?", place):
            raise MedadError(f"{place!r} is no address in S3", "Write s3://BUCKET/FOLDER")
    seconds = int(order.hours * 3600)
    request: dict[str, Any] = {
        "TrainingJobName": order.name or stamped(order.model),
        "RoleArn": order.role,
        "AlgorithmSpecification": {
            "TrainingImage": order.image,
            "TrainingInputMode": "File",
            "ContainerEntrypoint": ENTRYPOINT,
            "ContainerArguments": ["train"],
            "MetricDefinitions": [{"Name": name, "Regex": f"{name} {_NUMBER}"} for name in METRICS],
        },
        "HyperParameters": hyperparameters(order),
        "InputDataConfig": [_channel(name, place) for name, place in order.data.items()],
        "OutputDataConfig": {"S3OutputPath": order.output},
        "ResourceConfig": {
            "InstanceType": order.instance,
            "InstanceCount": 1,
            "VolumeSizeInGB": order.volume_gb,
        },
        "StoppingCondition": {"MaxRuntimeInSeconds": seconds},
        "EnableManagedSpotTraining": order.spot,
    }
    if order.spot:  # the time that it may wait for a machine counts too
        request["StoppingCondition"]["MaxWaitTimeInSeconds"] = 2 * seconds
    if order.checkpoints:
        request["CheckpointConfig"] = {"S3Uri": order.checkpoints, "LocalPath": f"{ROOT}/checkpoints"}
    check_request("CreateTrainingJob", request)
    return request


def _channel(name: str, place: str) -> dict[str, Any]:
    # A prefix without the slash would also match its namesakes: train matches train_old.
    source = {"S3DataType": "S3Prefix", "S3Uri": f"{place.rstrip('/')}/", "S3DataDistributionType": "FullyReplicated"}
    return {"ChannelName": name, "DataSource": {"S3DataSource": source}}


def submit(made: Any, request: dict[str, Any]) -> str:
    """Submit a training; returns its ARN."""
    return str(call(made, "create_training_job", **request)["TrainingJobArn"])


def wait(made: Any, name: str, say: Say, seconds: float = 30) -> str:
    """Tell how a job goes until it ends; returns where its model lies. Raises MedadError where it failed."""
    told = ""
    while True:
        job = call(made, "describe_training_job", TrainingJobName=name)
        status = str(job["TrainingJobStatus"])
        if (now := f"{status}: {job.get('SecondaryStatus', '')}") != told:
            say(f"job {name} {now}")
            told = now
        if status in _DONE:
            break
        time.sleep(seconds)
    for figure in job.get("FinalMetricDataList", ()):
        say(f"{figure['MetricName']} {figure['Value']:.4g}")
    if status != "Completed":
        reason = " ".join(str(job.get("FailureReason", "no reason given")).split()).rstrip(".")
        hint = "Submit it again with the same --checkpoints to go on" if status == "Stopped" else "Its log has more"
        raise MedadError(f"job {name} {status.lower()}: {reason}", hint)
    return str(job["ModelArtifacts"]["S3ModelArtifacts"])
