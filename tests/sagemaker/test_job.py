from __future__ import annotations

import csv
import json
import signal
import socket
import subprocess
import time
from pathlib import Path

import httpx
import pytest
import torch
from container import HYPERPARAMETERS, start_job, write_hyperparameters

from medad_serve.export.store import read_properties, verify


def _until(container: Path, rows: int, process: subprocess.Popen[str]) -> Path:
    """Wait until the job has logged some epochs; return its run."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and process.poll() is None:
        for log in container.glob("checkpoints/runs/ae/*/metrics.csv"):
            if log.read_text().count("\n") > rows:
                return log.parent
        time.sleep(0.01)
    raise AssertionError(process.communicate()[1])


@pytest.mark.slow
def test_a_job_that_is_stopped_goes_on_from_its_checkpoint_and_leaves_a_model(container: Path) -> None:
    first = start_job(container, "train")
    run = _until(container, 3, first)
    first.send_signal(signal.SIGTERM)
    said = first.communicate(timeout=60)
    assert first.returncode == 143, said
    assert not (container / "output/failure").exists()
    assert not (run / "finished").exists()
    # Checkpoints by time come every ten minutes: the signal left this one.
    stood = torch.load(run / "last.ckpt", weights_only=True)["epoch"]
    assert stood >= 2

    second = start_job(container, "train")
    said = second.communicate(timeout=300)
    assert second.returncode == 0, said[1]
    assert f"run {run} goes on" in said[0]
    assert [p.name for p in run.parent.iterdir()] == [run.name]
    with (run / "metrics.csv").open(newline="") as file:
        assert [int(row["epoch"]) for row in csv.DictReader(file)] == list(range(60))

    roles = json.loads((run / "split.json").read_text())["roles"]
    tested = {p.name.split("_")[0] for p in (container / "input/data/test").rglob("*.dcm")}
    assert {patient for patient, role in roles.items() if role == "test"} >= tested
    assert verify(container / "model/heads-ae.mar").name == "heads-ae"
    figures = json.loads((container / "model/metrics.json").read_text())
    assert f"test/auroc {figures['slice']['auroc']['value']:.4g}" in said[0]
    assert (container / "model/artifact/medad.json").is_file()
    assert (container / "model/report.html").is_file()
    assert read_properties(container / "model/config.properties")["load_models"] == "heads-ae.mar"


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"model": "none"}, "Choose one of: ae"),
        ({"train.max_epoch": "3"}, "Did you mean train.max_epochs?"),
        ({"formats": "onnx,pickle"}, "there is no runtime 'pickle'"),
        ({"name": "a b"}, "'a b' cannot name a model"),
        ({"layout": "cq501"}, "layout cq501 takes one channel"),
        ({"calibration.policy": "specificity=0.999"}, "takes 999 healthy patients"),
    ],
)
def test_a_failure_is_the_line_that_sagemaker_shows(container: Path, monkeypatch, changed, says, capsys) -> None:
    from medad_serve.sagemaker.__main__ import main

    monkeypatch.setenv("MEDAD_SAGEMAKER_ROOT", str(container))
    write_hyperparameters(container, HYPERPARAMETERS | changed)
    assert main(["train"]) == 1
    reason = (container / "output/failure").read_text()
    assert says in reason
    assert "\n" not in reason
    assert f"Error: {reason}" in capsys.readouterr().err


def test_without_a_channel_the_failure_says_so(tmp_path: Path, monkeypatch) -> None:
    from medad_serve.sagemaker.__main__ import main

    monkeypatch.setenv("MEDAD_SAGEMAKER_ROOT", str(tmp_path))
    # In script mode the hyperparameters are arguments too.
    monkeypatch.setenv("SM_HPS", json.dumps({"model": "ae"}))
    assert main(["--model", "ae"]) == 1
    assert "input channel called train" in (tmp_path / "output/failure").read_text()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@pytest.mark.server
def test_a_container_answers_sagemaker_without_tokens(artifact: Path, dicom_files: list[Path], tmp_path: Path) -> None:
    from medad_serve.export.archive import archive

    archive(artifact, tmp_path / "model", name="heads")
    (tmp_path / "model").chmod(0o500)
    port = _free_port()
    server = start_job(tmp_path, "serve", SAGEMAKER_BIND_TO_PORT=str(port))
    try:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 240
        answer = None
        while time.monotonic() < deadline and server.poll() is None:
            try:
                if httpx.get(f"{url}/ping", trust_env=False).status_code == 200:
                    body = dicom_files[0].read_bytes()
                    answer = httpx.post(
                        f"{url}/invocations",
                        content=body,
                        headers={"Content-Type": "application/dicom"},
                        timeout=60,
                        trust_env=False,
                    )
                    if answer.status_code == 200:
                        break
            except httpx.HTTPError:
                pass
            time.sleep(0.5)
        assert answer is not None, "the server never answered a ping"
        assert answer.status_code == 200, answer.text
        assert {"score", "p_value", "anomalous"} <= answer.json().keys()
        # SageMaker passes no header of ours: options go as fields.
        fields = {"data": ("x.dcm", body, "application/octet-stream"), "X-Medad-Heatmap": (None, "png")}
        mapped = httpx.post(f"{url}/invocations", files=fields, timeout=60, trust_env=False)
        assert mapped.json()["score"] == answer.json()["score"]
        assert mapped.json()["heatmap"]["data"]
    finally:
        server.send_signal(signal.SIGTERM)
        said = server.communicate(timeout=120)
    assert server.returncode == 0, said[1][-2000:]
    assert [p.name for p in (tmp_path / "model").iterdir() if p.name.startswith(".server")] == []


def test_an_archive_that_is_not_in_its_index_is_not_served(artifact: Path, tmp_path: Path, monkeypatch) -> None:
    from medad_serve.errors import MedadError
    from medad_serve.export.archive import archive
    from medad_serve.sagemaker.hosting import serve

    environ = {"MEDAD_SAGEMAKER_ROOT": str(tmp_path)}
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    (tmp_path / "model").mkdir()
    with pytest.raises(MedadError, match="holds 0 archives"):
        serve(environ)
    mar = archive(artifact, tmp_path / "model", name="heads")
    with mar.open("ab") as file:
        file.write(b"x")
    with pytest.raises(MedadError, match="differs from its digest"):
        serve(environ)
