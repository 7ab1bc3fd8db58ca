from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import botocore.session
import pytest
import torch
from botocore.stub import Stubber
from fake_aws import NOBODY, SOMEBODY, FakeAws

from medad_serve.cli.main import main
from medad_serve.errors import MedadError
from medad_serve.sagemaker import order
from medad_serve.sagemaker.order import METRICS, Order, hyperparameters, training_request
from medad_serve.sagemaker.service import client
from medad_serve.training.fit import Progress

ROLE = "arn:aws:iam::123456789012:role/Trainer"
ASKED = Order(
    model="ae",
    overrides=("train.max_epochs=3", "calibration.policy=youden", "device=cuda"),
    data={"train": "s3://bucket/set/train", "test": "s3://bucket/set/test/"},
    image="123456789012.dkr.ecr.us-east-1.amazonaws.com/medad:1",
    role=ROLE,
    instance="ml.g4dn.xlarge",
    output="s3://bucket/models",
    checkpoints="s3://bucket/checkpoints/ae",
    spot=True,
    hours=2,
)


def _enums(shape: Any, value: Any) -> None:
    """Assert that every value which the service's model enumerates is one of those."""
    if shape.type_name == "structure":
        for name, part in value.items():
            _enums(shape.members[name], part)
    elif shape.type_name == "list":
        for part in value:
            _enums(shape.member, part)
    elif getattr(shape, "enum", None):
        assert value in shape.enum


def test_the_request_is_what_the_service_takes() -> None:
    request = training_request(ASKED)
    model = botocore.session.get_session().get_service_model("sagemaker")
    shape = model.operation_model("CreateTrainingJob").input_shape
    _enums(shape, request)
    stubbed = boto3.client("sagemaker", region_name="us-east-1", aws_access_key_id="k", aws_secret_access_key="s")
    with Stubber(stubbed) as stub:  # which validates names and types
        arn = "arn:aws:sagemaker:us-east-1:123456789012:training-job/x"
        stub.add_response("create_training_job", {"TrainingJobArn": arn}, request)
        assert order.submit(stubbed, request) == arn


def test_the_request_says_where_everything_lies() -> None:
    request = training_request(ASKED)
    places = {c["ChannelName"]: c["DataSource"]["S3DataSource"]["S3Uri"] for c in request["InputDataConfig"]}
    # With the slash, so that the prefix does not match set/train_old.
    assert places == {"train": "s3://bucket/set/train/", "test": "s3://bucket/set/test/"}
    assert request["CheckpointConfig"] == {"S3Uri": "s3://bucket/checkpoints/ae", "LocalPath": "/opt/ml/checkpoints"}
    assert request["StoppingCondition"] == {"MaxRuntimeInSeconds": 7200, "MaxWaitTimeInSeconds": 14400}
    assert request["EnableManagedSpotTraining"] is True
    assert request["HyperParameters"] == {
        "model": "ae",
        "layout": "folders",
        "formats": "onnx",
        "train.max_epochs": "3",
        "calibration.policy": "youden",
        "device": "cuda",
    }
    assert re.fullmatch(r"ae-\d{8}-\d{6}", request["TrainingJobName"])


def test_the_container_reads_back_what_was_asked(tmp_path: Path) -> None:
    from medad_serve.sagemaker.container import read_container
    from medad_serve.training.config import parse_overrides

    recipe = tmp_path / "own.yaml"
    recipe.write_text("model: ae\ntrain: {max_epochs: 7, augment: {flip: 0.5}}\nsettings: {latent_dim: 8}\n")
    asked = replace(ASKED, config=str(recipe), overrides=("train.max_epochs=3", "prep.size=[64, 64]"))
    environ = {"SM_HPS": json.dumps(hyperparameters(asked)), "MEDAD_SAGEMAKER_ROOT": str(tmp_path)}
    found = read_container(environ)
    assert (found.options.model, found.options.config) == ("ae", None)
    assert parse_overrides(found.overrides, "ae") == {
        "train": {"max_epochs": 3, "augment": {"flip": 0.5}},
        "settings": {"latent_dim": 8},
        "prep": {"size": [64, 64]},
    }


def test_metrics_are_read_off_the_lines_that_training_writes() -> None:
    lines: list[str] = []

    figures = {"train/loss": torch.tensor(0.0123), "val/loss": torch.tensor(1.5e-05), "val/auroc": torch.tensor(1.0)}
    trainer = SimpleNamespace(current_epoch=4, callback_metrics=figures)
    Progress(lines.append, seconds=0).on_train_epoch_end(trainer, None)
    found = {
        d["Name"]: re.search(d["Regex"], lines[0])
        for d in training_request(ASKED)["AlgorithmSpecification"]["MetricDefinitions"]
    }
    assert set(found) == set(METRICS)
    assert {n: float(m[1]) for n, m in found.items() if m} == {
        "train/loss": 0.0123,
        "val/loss": 1.5e-05,
        "val/auroc": 1,
    }


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"role": "Trainer"}, 'RoleArn cannot be "Trainer"'),
        ({"name": "a_b"}, 'TrainingJobName cannot be "a_b"'),
        ({"name": "a" * 64}, "TrainingJobName is too long"),
        ({"image": "x" * 256}, "TrainingImage is too long"),
        ({"output": "bucket/models"}, "'bucket/models' is no address in S3"),
        ({"data": {"train": "/data"}}, "'/data' is no address in S3"),
        ({"data": {"weights": "s3://b/x"}}, "no channel 'weights'"),
        ({"checkpoints": None}, "Give --checkpoints"),
        ({"overrides": ("train.max_epoch=3",)}, "Did you mean train.max_epochs"),
        ({"overrides": ("prep.size=[33, 47]",)}, "size"),
        ({"overrides": ("formats=onnx",)}, "there is no setting 'formats'"),
        ({"model": "none"}, "Choose one of: ae"),
        ({"config": "nowhere"}, "there is no configuration"),
    ],
)
def test_faults_are_told_before_anybody_is_asked(changed: dict[str, Any], says: str) -> None:
    with pytest.raises(MedadError, match=re.escape(says)) as refused:
        training_request(replace(ASKED, **changed))
    assert "\n" not in str(refused.value)


def test_a_model_that_builds_on_another_is_checked_as_far_as_it_can_be() -> None:
    asked = replace(ASKED, model="fracture", overrides=("train.max_epochs=3",))
    assert hyperparameters(asked)["train.max_epochs"] == "3"
    with pytest.raises(MedadError, match="there is no setting"):
        hyperparameters(replace(asked, overrides=("train.epochs=3",)))


ARGUMENTS = [
    *("sagemaker", "train", "ae", "train.max_epochs=3", "--image", ASKED.image, "--role", ROLE),
    *("--instance", ASKED.instance, "--data", "train=s3://bucket/set", "--output", ASKED.output),
]


def _main(*more: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["medad-serve", *ARGUMENTS, *more])
    with pytest.raises(SystemExit) as left:
        main()
    return int(left.value.code or 0)


def test_a_dry_run_prints_the_request_and_needs_no_account(monkeypatch, capsys) -> None:
    for name, value in NOBODY.items():
        monkeypatch.setenv(name, value)
    for name in SOMEBODY:
        monkeypatch.delenv(name, raising=False)
    assert _main("--dry-run", monkeypatch=monkeypatch) == 0
    assert json.loads(capsys.readouterr().out)["HyperParameters"]["train.max_epochs"] == "3"


def test_a_job_is_submitted_and_waited_for(aws: FakeAws, monkeypatch, capsys) -> None:
    assert _main("--name", "heads", "--wait", monkeypatch=monkeypatch) == 0
    job = aws.client("sagemaker").describe_training_job(TrainingJobName="heads")
    assert job["HyperParameters"]["train.max_epochs"] == "3"
    assert job["AlgorithmSpecification"]["ContainerEntrypoint"] == ["python", "-m", "medad_serve.sagemaker"]
    said = capsys.readouterr()
    assert job["TrainingJobArn"] in said.out
    assert job["ModelArtifacts"]["S3ModelArtifacts"] in said.out
    assert "job heads Completed" in said.err


@pytest.mark.parametrize(
    ("gone", "says"),
    [("AWS_DEFAULT_REGION", "no AWS region is set"), ("AWS_ACCESS_KEY_ID", "no usable AWS credentials")],
)
def test_without_account_or_region_the_error_says_what_to_set(aws: FakeAws, monkeypatch, capsys, gone, says) -> None:
    monkeypatch.delenv(gone)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY") if gone == "AWS_ACCESS_KEY_ID" else None
    assert _main(monkeypatch=monkeypatch) == 1
    assert says in capsys.readouterr().err


def test_without_boto3_the_error_names_the_extra(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(MedadError, match=r"pip install 'medad-serve\[aws\]'"):
        client("sagemaker", None)


_ASSUME = (
    "Could not assume role arn:aws:iam::123456789012:role/Trainer. Please ensure that the role exists and allows "
    "principal 'sagemaker.amazonaws.com' to assume the role"
)


@pytest.mark.parametrize(
    ("code", "message", "says"),
    [
        ("ValidationException", _ASSUME, "let sagemaker.amazonaws.com assume it"),
        ("ResourceInUse", "Job name must be unique within an AWS account and region", "Give another --name"),
        ("ResourceLimitExceeded", "The account-level service limit is 0 Instances", "Ask AWS for a higher quota"),
        ("AccessDeniedException", "User is not authorized", "is denied"),
        ("UnrecognizedClientException", "The security token included in the request is invalid.", "are not accepted"),
        ("ValidationException", "Member must satisfy enum value set", "Member must satisfy enum value set"),
    ],
)
def test_what_aws_refuses_is_one_line(code: str, message: str, says: str) -> None:
    stubbed = boto3.client("sagemaker", region_name="us-east-1", aws_access_key_id="k", aws_secret_access_key="s")
    with Stubber(stubbed) as stub:
        stub.add_client_error("create_training_job", code, message, http_status_code=400)
        with pytest.raises(MedadError, match=re.escape(says)) as refused:
            order.submit(stubbed, training_request(ASKED))
    assert "\n" not in str(refused.value)


def test_waiting_tells_why_a_job_failed() -> None:
    stubbed = boto3.client("sagemaker", region_name="us-east-1", aws_access_key_id="k", aws_secret_access_key="s")
    said: list[str] = []
    states = [("InProgress", "Starting"), ("InProgress", "Starting"), ("InProgress", "Training"), ("Failed", "Failed")]
    with Stubber(stubbed) as stub:
        for status, second in states:
            job = _job(status, second)
            stub.add_response("describe_training_job", job, {"TrainingJobName": "heads"})
        with pytest.raises(MedadError, match=r"job heads failed: AlgorithmError: takes 19 healthy patients"):
            order.wait(stubbed, "heads", said.append, seconds=0)
    assert said == ["job heads InProgress: Starting", "job heads InProgress: Training", "job heads Failed: Failed"]


def _job(status: str, second: str) -> dict[str, Any]:
    from datetime import UTC, datetime

    return {
        "TrainingJobName": "heads",
        "TrainingJobArn": "arn:aws:sagemaker:us-east-1:123456789012:training-job/heads",
        "ModelArtifacts": {"S3ModelArtifacts": "s3://bucket/models/heads/output/model.tar.gz"},
        "TrainingJobStatus": status,
        "SecondaryStatus": second,
        "AlgorithmSpecification": {"TrainingInputMode": "File"},
        "ResourceConfig": {"VolumeSizeInGB": 50},
        "StoppingCondition": {},
        "CreationTime": datetime.now(UTC),
        **({"FailureReason": "AlgorithmError: takes 19 healthy patients\n"} if status == "Failed" else {}),
    }
