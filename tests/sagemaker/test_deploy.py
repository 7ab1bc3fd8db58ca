from __future__ import annotations

import json
import re
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from fake_aws import FakeAws

from medad_serve.cli.main import main
from medad_serve.errors import MedadError
from medad_serve.export.archive import archive
from medad_serve.export.store import read_properties, verify
from medad_serve.sagemaker import deploy as hosting
from medad_serve.sagemaker.deploy import Deployment, find_archive, pack, requests

ROLE = "arn:aws:iam::123456789012:role/Server"
IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/medad:1"


@pytest.fixture(scope="module")
def mar(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return archive(artifact, tmp_path_factory.mktemp("store"), name="head_ae")


@pytest.fixture
def asked(mar: Path) -> Deployment:
    return Deployment(archive=mar, image=IMAGE, role=ROLE, to="s3://bucket/served", instance="ml.m5.large")


def test_the_tarball_holds_a_store_that_verifies(mar: Path, tmp_path: Path) -> None:
    pack(mar, tmp_path / "model.tar.gz")
    with tarfile.open(tmp_path / "model.tar.gz") as packed:
        assert sorted(packed.getnames()) == ["config.properties", "head_ae.mar", "index.json", "log4j2.xml"]
        packed.extractall(tmp_path / "model", filter="data")
    assert verify(tmp_path / "model/head_ae.mar").name
    settings = read_properties(tmp_path / "model/config.properties")
    assert settings["inference_address"] == "http://0.0.0.0:8080"
    assert settings["model_store"] == "/opt/ml/model"
    assert settings["load_models"] == "head_ae.mar"
    assert settings["disable_token_authorization"] == "true"
    assert settings["management_address"] == "http://127.0.0.1:8081"  # not to be reached from outside


def test_the_requests_belong_together(asked: Deployment) -> None:
    made = requests(asked)
    name = made["CreateModel"]["ModelName"]
    assert re.fullmatch(r"head-ae-\d{8}-\d{6}", name)
    assert made["Upload"] == {"Bucket": "bucket", "Key": f"served/{name}/model.tar.gz"}
    assert made["CreateModel"]["PrimaryContainer"]["ModelDataUrl"] == f"s3://bucket/served/{name}/model.tar.gz"
    variant = made["CreateEndpointConfig"]["ProductionVariants"][0]
    assert (variant["ModelName"], variant["InstanceType"]) == (name, "ml.m5.large")
    assert made["CreateEndpoint"] == {"EndpointName": "head-ae", "EndpointConfigName": name}
    known = botocore.session.get_session().get_service_model("sagemaker").shape_for("ProductionVariantInstanceType")
    assert variant["InstanceType"] in known.enum


def test_a_serverless_endpoint_has_memory_and_no_instance(asked: Deployment) -> None:
    made = requests(replace(asked, instance=None, serverless_mb=3072, to="s3://bucket"))
    variant = made["CreateEndpointConfig"]["ProductionVariants"][0]
    assert variant["ServerlessConfig"] == {"MemorySizeInMB": 3072, "MaxConcurrency": 5}
    assert "InstanceType" not in variant
    assert made["Upload"]["Key"].startswith("head-ae-")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"to": "bucket/served"}, "is no address in S3"),
        ({"role": "Server"}, 'ExecutionRoleArn cannot be "Server"'),
        ({"image": "a b"}, 'Image cannot be "a b"'),
        ({"name": "-x"}, 'EndpointName cannot be "-x"'),
        ({"instance": None}, "Give --instance or --serverless"),
        ({"serverless_mb": 2048}, "Give --instance or --serverless"),
    ],
)
def test_faults_are_told_before_anybody_is_asked(asked: Deployment, changed: dict[str, Any], says: str) -> None:
    with pytest.raises(MedadError, match=re.escape(says)):
        requests(replace(asked, **changed))


def test_only_an_archive_that_its_index_knows_is_deployed(mar: Path, tmp_path: Path) -> None:
    assert find_archive(mar.parent) == mar
    stray = tmp_path / "store" / mar.name
    stray.parent.mkdir()
    stray.write_bytes(mar.read_bytes())
    with pytest.raises(MedadError, match=r"is not in .*index.json"):
        find_archive(stray)
    (stray.parent / "index.json").write_bytes((mar.parent / "index.json").read_bytes())
    assert find_archive(stray) == stray
    stray.write_bytes(mar.read_bytes() + b"x")
    with pytest.raises(MedadError, match="differs from its digest"):
        find_archive(stray)
    (stray.parent / "other.mar").write_bytes(b"")
    with pytest.raises(MedadError, match="holds 2 archives"):
        find_archive(stray.parent)
    with pytest.raises(MedadError, match="is no archive"):
        find_archive(tmp_path / "model.onnx")


def _main(mar: Path, *more: str, monkeypatch: pytest.MonkeyPatch) -> int:
    arguments = ["sagemaker", "deploy", str(mar), "--image", IMAGE, "--role", ROLE, "--to", "s3://bucket/served"]
    monkeypatch.setattr(sys, "argv", ["medad-serve", *arguments, "--instance", "ml.m5.large", *more])
    with pytest.raises(SystemExit) as left:
        main()
    return int(left.value.code or 0)


def _models(aws: FakeAws) -> list[str]:
    return [m["ModelName"] for m in aws.client("sagemaker").list_models()["Models"]]


def test_an_endpoint_is_made_and_then_updated(aws: FakeAws, mar: Path, monkeypatch, capsys, tmp_path: Path) -> None:
    s3, sagemaker = aws.client("s3"), aws.client("sagemaker")
    s3.create_bucket(Bucket="bucket")
    assert _main(mar, "--wait", monkeypatch=monkeypatch) == 0
    said = capsys.readouterr()
    assert "endpoint head-ae: created" in said.err
    found = sagemaker.describe_endpoint(EndpointName="head-ae")
    assert found["EndpointArn"] in said.out
    (model,) = _models(aws)
    container = sagemaker.describe_model(ModelName=model)["PrimaryContainer"]
    bucket, _, key = container["ModelDataUrl"].removeprefix("s3://").partition("/")
    s3.download_file(bucket, key, str(tmp_path / "model.tar.gz"))
    with tarfile.open(tmp_path / "model.tar.gz") as packed:
        assert packed.extractfile("head_ae.mar").read() == mar.read_bytes()
    monkeypatch.setattr(hosting, "stamped", lambda name: f"{name}-second")
    updated: list[dict[str, str]] = []
    plain = hosting.call

    def spy(made: Any, method: str, **request: Any) -> dict[str, Any]:
        if method == "update_endpoint":  # which the local AWS does not have
            updated.append(request)
            return {"EndpointArn": found["EndpointArn"]}
        return plain(made, method, **request)

    monkeypatch.setattr(hosting, "call", spy)
    assert _main(mar, monkeypatch=monkeypatch) == 0
    assert "endpoint head-ae: updated, model head-ae-second" in capsys.readouterr().err
    assert updated == [{"EndpointName": "head-ae", "EndpointConfigName": "head-ae-second"}]


def test_a_bucket_that_is_not_there_is_one_line_and_nothing_is_made(
    aws: FakeAws, mar: Path, monkeypatch, capsys
) -> None:
    assert _main(mar, monkeypatch=monkeypatch) == 1
    assert "s3://bucket" in capsys.readouterr().err.splitlines()[-1]
    assert not _models(aws)


def test_what_was_made_is_removed_where_a_later_step_fails(aws: FakeAws, mar: Path, monkeypatch, capsys) -> None:
    aws.client("s3").create_bucket(Bucket="bucket")
    plain = hosting.call

    def fail(made: Any, method: str, **request: Any) -> dict[str, Any]:
        if method == "create_endpoint":
            raise MedadError("the quota is used up")
        return plain(made, method, **request)

    monkeypatch.setattr(hosting, "call", fail)
    assert _main(mar, monkeypatch=monkeypatch) == 1
    assert "the quota is used up" in capsys.readouterr().err
    assert not _models(aws)
    assert not aws.client("sagemaker").list_endpoint_configs()["EndpointConfigs"]
    assert "Contents" not in aws.client("s3").list_objects_v2(Bucket="bucket")


def test_an_endpoint_that_is_busy_is_left_alone(asked: Deployment) -> None:
    class _Busy:
        def describe_endpoint(self, **_: str) -> dict[str, str]:
            return {"EndpointStatus": "Updating"}

    with pytest.raises(MedadError, match="endpoint head-ae is Updating"):
        hosting.deploy(asked, requests(asked), _Busy(), None, lambda _: None)


def test_waiting_tells_why_an_endpoint_does_not_come_up() -> None:
    states = iter(["Creating", "Creating", "Failed"])
    said: list[str] = []

    class _Endpoint:
        def describe_endpoint(self, **_: str) -> dict[str, str]:
            return {"EndpointStatus": next(states), "FailureReason": "The container did not pass the ping check"}

    with pytest.raises(MedadError, match="did not pass the ping check"):
        hosting.wait(_Endpoint(), "heads", said.append, seconds=0)
    assert said == ["endpoint heads: Creating", "endpoint heads: Failed"]


def test_a_dry_run_prints_every_request(mar: Path, monkeypatch, capsys) -> None:
    assert _main(mar, "--dry-run", monkeypatch=monkeypatch) == 0
    assert set(json.loads(capsys.readouterr().out)) == {
        "Upload",
        "CreateModel",
        "CreateEndpointConfig",
        "CreateEndpoint",
    }
