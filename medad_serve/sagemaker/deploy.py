"""Put an archive behind a SageMaker endpoint: packed, uploaded, model, configuration and endpoint made of it.

What cannot be tried without an account: that the image starts, and that the role may read the bucket. The
container's side is tried here (``medad_serve.sagemaker.hosting``).
"""

from __future__ import annotations

import re
import tarfile
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medad_serve.errors import MedadError
from medad_serve.export.inspection import AGAIN
from medad_serve.export.store import INDEX, verify
from medad_serve.sagemaker.hosting import SETTINGS, write_settings
from medad_serve.sagemaker.order import plain_name, stamped
from medad_serve.sagemaker.service import call, check_request, explained

Say = Callable[[str], None]
TARBALL = "model.tar.gz"
STARTUP_SECONDS = 600
"""TorchServe and its worker import torch before they answer."""
READY = "InService"


@dataclass(frozen=True)
class Deployment:
    """An endpoint that is asked for."""

    archive: Path
    image: str
    role: str
    to: str
    """S3 folder for model.tar.gz."""
    instance: str | None = None
    count: int = 1
    serverless_mb: int | None = None
    """Memory of a serverless endpoint, in place of an instance."""
    concurrency: int = 5
    """Requests at a time of a serverless endpoint."""
    name: str | None = None
    """Of the endpoint; the archive's unless given."""

    @property
    def endpoint(self) -> str:
        """Name of the endpoint."""
        return self.name or plain_name(self.archive.stem)


def find_archive(path: Path) -> Path:
    """Return an archive, or the only one of a model store, once it is what its store's index says."""
    if path.is_dir():
        found = sorted(path.glob("*.mar"))
        if len(found) != 1:
            names = ", ".join(p.name for p in found) or "none"
            raise MedadError(f"{path} holds {len(found)} archives ({names})", "Name one .mar file")
        path = found[0]
    if path.suffix != ".mar":
        raise MedadError(f"{path} is no archive", AGAIN)
    verify(path)
    return path


def pack(archive: Path, target: Path) -> None:
    """Write model.tar.gz: the archive, the index that proves it, and TorchServe's settings in a container."""
    with tempfile.TemporaryDirectory() as beside, tarfile.open(target, "w:gz") as packed:
        store = Path(beside)
        write_settings(store, archive.name)
        for path in (archive, archive.parent / INDEX, *sorted(store.iterdir())):
            packed.add(path, path.name)


def requests(asked: Deployment) -> dict[str, dict[str, Any]]:
    """Return the requests by operation, checked against the service's model, with the address to upload to."""
    place = re.fullmatch(r"s3://([^/]+)/?(.*)", asked.to)
    if place is None:
        raise MedadError(f"{asked.to!r} is no address in S3", "Write s3://BUCKET/FOLDER")
    if (asked.instance is None) == (asked.serverless_mb is None):
        raise MedadError("an endpoint runs on an instance or serverless", "Give --instance or --serverless")
    name = stamped(asked.endpoint)
    key = f"{place[2].rstrip('/')}/{name}/{TARBALL}".lstrip("/")
    variant: dict[str, Any] = {"VariantName": "main", "ModelName": name}
    if asked.instance:
        variant |= {"InstanceType": asked.instance, "InitialInstanceCount": asked.count, "InitialVariantWeight": 1.0}
        variant |= {"ContainerStartupHealthCheckTimeoutInSeconds": STARTUP_SECONDS}
    else:
        variant["ServerlessConfig"] = {"MemorySizeInMB": asked.serverless_mb, "MaxConcurrency": asked.concurrency}
    container = {
        "Image": asked.image,
        "ModelDataUrl": f"s3://{place[1]}/{key}",
        # TorchServe's own images take their settings from here.
        "Environment": {"TS_CONFIG_FILE": SETTINGS},
    }
    made: dict[str, dict[str, Any]] = {
        "CreateModel": {"ModelName": name, "ExecutionRoleArn": asked.role, "PrimaryContainer": container},
        "CreateEndpointConfig": {"EndpointConfigName": name, "ProductionVariants": [variant]},
        "CreateEndpoint": {"EndpointName": asked.endpoint, "EndpointConfigName": name},
    }
    for operation, request in made.items():
        check_request(operation, request)
    return {"Upload": {"Bucket": place[1], "Key": key}, **made}


def deploy(asked: Deployment, made: dict[str, dict[str, Any]], sagemaker: Any, s3: Any, say: Say) -> str:
    """Upload and make (or update) the endpoint; returns its ARN.

    What was made for it is removed again where a later step fails. Raises MedadError where AWS refuses one.
    """
    status = _status(sagemaker, asked.endpoint)
    if status not in (None, READY):
        raise MedadError(f"endpoint {asked.endpoint} is {status}", "Wait until it is InService, or delete it")
    with ExitStack() as undo:
        _upload(asked, made["Upload"], s3, say)
        undo.callback(_quietly, s3.delete_object, **made["Upload"])
        model = made["CreateModel"]
        call(sagemaker, "create_model", **model)
        undo.callback(_quietly, sagemaker.delete_model, ModelName=model["ModelName"])
        config = made["CreateEndpointConfig"]
        call(sagemaker, "create_endpoint_config", **config)
        undo.callback(_quietly, sagemaker.delete_endpoint_config, EndpointConfigName=config["EndpointConfigName"])
        method = "create_endpoint" if status is None else "update_endpoint"
        answer = call(sagemaker, method, **made["CreateEndpoint"])
        undo.pop_all()
    say(f"endpoint {asked.endpoint}: {'created' if status is None else 'updated'}, model {model['ModelName']}")
    return str(answer["EndpointArn"])


def _quietly(method: Callable[..., Any], **request: Any) -> None:
    with suppress(Exception):  # the first error is what matters
        method(**request)


def _status(sagemaker: Any, endpoint: str) -> str | None:
    """Return the state of an endpoint, None where there is none of that name."""
    try:
        return str(sagemaker.describe_endpoint(EndpointName=endpoint)["EndpointStatus"])
    except Exception as error:
        if "find" in str(error).lower():  # ValidationException: Could not find endpoint
            return None
        raise explained(error, "AWS describe endpoint") from None


def _upload(asked: Deployment, place: dict[str, Any], s3: Any, say: Say) -> None:
    with tempfile.TemporaryDirectory() as beside:
        packed = Path(beside) / TARBALL
        pack(asked.archive, packed)
        say(f"uploading {packed.stat().st_size / 1e6:.1f} MB to s3://{place['Bucket']}/{place['Key']}")
        try:
            s3.upload_file(str(packed), place["Bucket"], place["Key"])
        except Exception as error:
            raise explained(error, f"s3://{place['Bucket']}") from None


def wait(sagemaker: Any, endpoint: str, say: Say, seconds: float = 15) -> None:
    """Return once the endpoint serves; raises MedadError where it does not come up."""
    told: str | None = ""
    while True:
        answer = call(sagemaker, "describe_endpoint", EndpointName=endpoint)
        status = str(answer["EndpointStatus"])
        if status != told:
            say(f"endpoint {endpoint}: {status}")
            told = status
        if status == READY:
            return
        if status in ("Failed", "OutOfService", "UpdateRollbackFailed"):
            reason = " ".join(str(answer.get("FailureReason", "no reason given")).split()).rstrip(".")
            raise MedadError(f"endpoint {endpoint} does not come up: {reason}", "Its log in CloudWatch has more")
        time.sleep(seconds)
