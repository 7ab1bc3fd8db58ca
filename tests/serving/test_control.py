"""What a token opens and what it does not, over TLS, on a server whose model API is open: the settings' own is closed.

A corrupt archive and a foreign one lie beside the good one.
"""

from __future__ import annotations

import json
import shutil
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from certificates import make_pair
from click.testing import CliRunner

from medad_serve.cli.main import cli
from medad_serve.client import Client
from medad_serve.errors import MedadError
from medad_serve.export.archive import archive
from medad_serve.server import Management, Ports, Server, Tls
from medad_serve.server.tls import trusting

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return make_pair(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def store(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store")
    mar = archive(artifact, path, name="good")
    settings = path / "config.properties"
    settings.write_text(settings.read_text().replace("enable_model_api=false", "enable_model_api=true"))
    (path / "corrupt.mar").write_bytes(mar.read_bytes()[:-1000])
    shutil.copy(mar, path / "foreign.mar")
    shutil.copy(mar, path.parent / "elsewhere.mar")
    index = json.loads((path / "index.json").read_text())
    (path / "index.json").write_text(json.dumps({**index, "corrupt.mar": index["good.mar"]}))
    return path


@pytest.fixture(scope="module")
def ports() -> Ports:
    return Ports.free()


@pytest.fixture(scope="module")
def said(store: Path, pair: Tls, ports: Ports) -> str:
    """What the command says that starts the server."""
    options = ["--store", str(store), "--tls-cert", str(pair.certificate), "--tls-key", str(pair.key)]
    options += ["--inference-port", str(ports.inference), "--management-port", str(ports.management)]
    started = CliRunner().invoke(cli, ["serve", *options, "--metrics-port", str(ports.metrics), "--timeout", "120"])
    assert started.exit_code == 0, started.output
    return started.output


@pytest.fixture(scope="module")
def server(store: Path, pair: Tls, ports: Ports, said: str) -> Iterator[Server]:
    made = Server(store, ports, pair)
    yield made
    if made.process():
        made.stop(drain=0)


def ask(server: Server, method: str, kind: str, path: str, key: str | None = None) -> httpx.Response:
    headers = {}
    if key:
        token = json.loads(server.key_file.read_text())[key]["key"]
        headers = {"Authorization": f"Bearer {token}"}
    trusted = trusting(Path(server.settings["certificate_file"]))
    return httpx.request(method, server.url(kind) + path, headers=headers, verify=trusted, trust_env=False)


def workers(server: Server) -> list[dict[str, object]]:
    answer = ask(server, "GET", "management", "/models/good", "management")
    assert answer.status_code == 200
    return list(answer.json()[0]["workers"])


def test_a_good_archive_is_served_and_the_bad_ones_beside_it_are_named(said: str, server: Server) -> None:
    assert "Serving good at https://127.0.0.1" in said
    assert "NOT SERVED: corrupt: corrupt.mar differs from its digest" in said
    assert "NOT SERVED: foreign: foreign.mar is not in" in said
    assert json.loads((server.run_dir / "server.json").read_text())["models"] == ["good"]


@pytest.mark.parametrize("name", ["corrupt", "foreign"])
def test_a_bad_archive_asked_for_by_name_is_refused(store: Path, name: str) -> None:
    with pytest.raises(MedadError, match=rf"{name}\.mar"):
        Server(store, Ports.free()).start(["good", name])


@pytest.mark.parametrize("key", ["inference", None])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/models"),
        ("GET", "/models/good"),
        ("PUT", "/models/good?min_worker=0&max_worker=0"),
        ("PUT", "/models/good/1.0/set-default"),
        ("DELETE", "/models/good/1.0"),
        ("POST", "/models?url=good.mar&model_name=twin"),
        ("GET", "/token?type=inference"),
        ("GET", "/token?type=management"),
    ],
)
def test_no_inference_token_opens_the_management_api(server: Server, method: str, path: str, key: str | None) -> None:
    answer = ask(server, method, "management", path, key)
    assert answer.status_code in (400, 404, 405), answer.text
    assert "key" not in json.loads(answer.text or "{}")
    assert [worker["status"] for worker in workers(server)] == ["READY"]


def test_no_management_token_opens_predictions(server: Server) -> None:
    assert ask(server, "GET", "inference", "/ping", "management").status_code == 400


def test_only_archives_of_the_store_can_be_registered(server: Server, store: Path) -> None:
    outside = store.parent / "elsewhere.mar"
    for url in (
        outside.as_uri(),
        f"{store.as_uri()}/../elsewhere.mar",
        "../elsewhere.mar",
        "https://example.org/x.mar",
        "http://127.0.0.1:1/x.mar",
        "s3://bucket/x.mar",
    ):
        path = f"/models?url={url}&model_name=twin"
        assert ask(server, "POST", "management", path, "management").status_code >= 400
    assert [m["modelName"] for m in ask(server, "GET", "management", "/models", "management").json()["models"]] == [
        "good"
    ]


def test_it_listens_on_loopback_alone(server: Server) -> None:
    process = server.process()
    assert process is not None
    listening = {c.laddr.ip for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    assert listening <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def test_grpc_asks_for_the_token_too(server: Server, pair: Tls) -> None:
    grpc = pytest.importorskip("grpc", reason="comes with no package that is needed")
    process = server.process()
    assert process is not None
    rest = {int(server.url(kind).rpartition(":")[2]) for kind in ("inference", "management", "metrics")}
    open_ports = {c.laddr.port for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    trusted = grpc.ssl_channel_credentials(pair.certificate.read_bytes())
    answers = []
    for port in open_ports - rest:
        for method in (
            "inference.InferenceAPIsService/Predictions",
            "management.ManagementAPIsService/ListModels",
            "management.ManagementAPIsService/UnregisterModel",
        ):
            with grpc.secure_channel(f"127.0.0.1:{port}", trusted) as channel:
                with pytest.raises(grpc.RpcError) as refused:
                    channel.unary_unary(f"/org.pytorch.serve.grpc.{method}")(b"\x0a\x04good", timeout=20)
                answers.append(refused.value.code())
    refusals = (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED)
    assert sum(answer in refusals for answer in answers) == 3, answers
    assert {answer for answer in answers if answer not in refusals} <= {grpc.StatusCode.UNIMPLEMENTED}


def test_clients_must_know_the_certificate(server: Server, pair: Tls, dicom_files: list[Path]) -> None:
    with Client(server.url("inference"), key_file=server.key_file, ca=pair.certificate) as client:
        assert "score" in client.predict(dicom_files[0], "good")
    plain = server.url("inference").replace("https", "http")
    with Client(plain, key_file=server.key_file) as client, pytest.raises(MedadError, match=r"speaks TLS.*https://"):
        client.predict(dicom_files[0], "good")
    speaks_tls = pytest.raises(MedadError, match=r"speaks TLS.*https://")
    with Management(server.url("management").replace("https", "http"), None) as there, speaks_tls:
        there.models()
    no_key = pytest.raises(MedadError, match="refuses the key")
    with Management(server.url("management"), None, trusting(pair.certificate)) as there, no_key:
        there.models()
    for kind in ("inference", "management", "metrics"):
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(server.url(kind), trust_env=False)
        plain = httpx.get(server.url(kind).replace("https", "http"), trust_env=False)
        assert plain.status_code in (301, 302, 307, 308, 403)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_old_protocols_are_refused(server: Server) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.url("inference"), verify=context, trust_env=False)


def test_the_key_stays_in_its_file(server: Server, pair: Tls) -> None:
    secret = pair.key.read_text().splitlines()[1]
    for path in server.run_dir.rglob("*"):
        assert path.is_dir() or secret not in path.read_text(errors="replace")
