"""What a worker counts and tells: over TorchServe's own metrics cache, and through a real server of two workers."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import psutil
import pydicom
import pytest
import yaml
from click.testing import CliRunner
from false_alarms import level_of
from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl

from medad_serve.cli.drift import drift
from medad_serve.client import Client
from medad_serve.errors import InputError, MedadError
from medad_serve.export.archive import archive
from medad_serve.predictor import Result
from medad_serve.server import Ports, Server
from medad_serve.serving.watch import Watch, worker_of
from medad_serve.spec import Calibration

OURS = Path(str(files("medad_serve").joinpath("metrics.yaml")))
STAGES = {"decode": 12.5, "prepare": 0.25, "infer": 40.0}
# of Metric.parse in TorchServe's frontend; a line that does not match is an error in its log
LINE = re.compile(r"\[METRICS\]([\w\s]+)\.([\w\s]+):([0-9\-,.e]+)\|#([^|]*)\|#type:([^|,]+)\|#hostname:([^,]+),([^,]+)")


def torchserves() -> Path:
    spec = find_spec("ts")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "configs" / "metrics.yaml"


def metrics_of(path: Path) -> MetricsCacheYamlImpl:
    cache = MetricsCacheYamlImpl(str(path))
    cache.initialize_cache()
    cache.model_name = "m"
    return cache


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    """Of 40 patients: a slice scores 0 to 39, with the cutoff just above 38, and a patient 100 more."""
    item, patient = (level_of([[float(i + more)] for i in range(40)]) for more in (0, 100))
    return Calibration(
        method="held_out",
        items_per_patient=(1, 1),
        data_fingerprint="",
        heatmap_scale=1,
        item=item,
        patient=patient,
    )


def result(score: float, slices: list[float] | None = None) -> Result:
    facts = {"kind": "png", "modality": "OT", "rows": 1, "columns": 1, "frames": 1, "window": None}
    items = slices and [{"index": i, "score": s, "p_value": 1, "anomalous": False} for i, s in enumerate(slices)]
    whole = {"level": "patient" if slices else "slice", "score": score, "slices": items}
    decided = {"p_value": 1, "cutoff": 0, "policy": "value=0", "anomalous": True}  # by a policy of the request's own
    return Result.model_validate(
        {"model": "m", "version": "1", "input": facts, "timing_ms": {"decode": 1.0}, **whole, **decided}
    )


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[tuple[str, float, str]]]:
    """Name, value and labels of what was told since the last call."""
    caplog.set_level(logging.INFO)

    def take() -> list[tuple[str, float, str]]:
        found = []
        for record in caplog.records:
            match = LINE.fullmatch(record.getMessage())
            if record.name == "ts.metrics.caching_metric":
                assert match, record.getMessage()
                found.append((match[1], float(match[3]), match[4]))
        caplog.clear()
        return found

    return take


def test_everything_is_counted(calibration: Calibration, lines: Callable[[], list[tuple[str, float, str]]]) -> None:
    watch = Watch(calibration, metrics_of(OURS), every_s=3600)
    lines()
    fault = InputError(422, "not usable")
    watch.record([(200, result(5)), (200, result(30)), (422, fault), (200, result(39))], STAGES, 4)
    assert sorted(lines()) == [
        ("medad_answers_total", 1, "model_name:m,band:anomalous"),
        ("medad_answers_total", 1, "model_name:m,band:low"),
        ("medad_answers_total", 1, "model_name:m,band:middle"),
        ("medad_batches_total", 1, "model_name:m,size:4"),
        ("medad_requests_total", 1, "model_name:m,code:422"),
        ("medad_requests_total", 3, "model_name:m,code:200"),
        ("medad_stage_milliseconds_total", 0.25, "model_name:m,stage:prepare"),
        ("medad_stage_milliseconds_total", 12.5, "model_name:m,stage:decode"),
        ("medad_stage_milliseconds_total", 40, "model_name:m,stage:infer"),
    ]
    assert watch.window.state().patients == 3
    assert watch.window.state().share_anomalous == pytest.approx(1 / 3)


def test_a_series_is_banded_as_a_patient_and_watched_by_its_slices(
    calibration: Calibration, lines: Callable[[], list[tuple[str, float, str]]]
) -> None:
    watch = Watch(calibration, metrics_of(OURS), every_s=3600)
    watch.record([(200, result(110, slices=[3.0, 4.0]))], STAGES, 1)
    assert ("medad_answers_total", 1, "model_name:m,band:low") in lines()
    assert watch.window.state().patients == 1
    assert list(watch.window.entries[0].scores) == [3, 4]


def test_losses_of_decoders_are_told_once(
    calibration: Calibration, lines: Callable[[], list[tuple[str, float, str]]]
) -> None:
    watch = Watch(calibration, metrics_of(OURS), every_s=3600)
    told = []
    for losses in ({}, {"hung": 1}, {"hung": 1}, {"hung": 3, "died": 1}):
        lines()
        watch.record([], {}, 0, losses)
        told.append([line for line in lines() if line[0] == "medad_decoder_losses_total"])
    hung, died = "model_name:m,how:hung", "model_name:m,how:died"
    assert [[(value, label) for _, value, label in each] for each in told] == [
        [],
        [(1, hung)],
        [],
        [(2, hung), (1, died)],
    ]


def test_lines_are_few_and_add_up(calibration: Calibration, lines: Callable[[], list[tuple[str, float, str]]]) -> None:
    watch = Watch(calibration, metrics_of(OURS), every_s=3600)
    lines()
    batch = [(200, result(5))] * 6 + [(400, InputError(400, "no image"))] * 2
    for _ in range(3):
        watch.record(batch, STAGES, 8)
    told = lines()
    assert len(told) == 3 * 7
    sums: Counter[tuple[str, str]] = Counter()
    for name, value, labels in told:
        sums[name, labels] += value
    assert sums["medad_requests_total", "model_name:m,code:200"] == 18
    assert sums["medad_requests_total", "model_name:m,code:400"] == 6
    assert sums["medad_batches_total", "model_name:m,size:8"] == 3
    assert sums["medad_answers_total", "model_name:m,band:low"] == 18
    assert sums["medad_stage_milliseconds_total", "model_name:m,stage:decode"] == 37.5


def test_gauges_come_at_the_start_and_then_by_the_clock(
    calibration: Calibration, lines: Callable[[], list[tuple[str, float, str]]]
) -> None:
    watch = Watch(calibration, metrics_of(OURS), every_s=0)
    first = {name: value for name, value, _ in lines()}
    assert set(first.values()) == {0}
    declared = {metric["name"] for metric in yaml.safe_load(OURS.read_text())["model_metrics"]["gauge"]}
    assert set(first) == {name for name in declared if name.startswith("medad_drift_")}
    for score in range(40, 80):
        watch.record([(200, result(score % 30))], STAGES, 1)
    told = {name: value for name, value, labels in lines() if labels == "model_name:m,worker:0"}
    state = watch.window.state()
    assert told["medad_drift_patients"] == 40
    assert told["medad_drift_ks"] == pytest.approx(state.ks, abs=1e-6)
    assert told["medad_drift_psi_alarm_level"] == pytest.approx(state.psi_alarm_level, abs=1e-6)


def test_a_drift_is_told(calibration: Calibration, lines: Callable[[], list[tuple[str, float, str]]]) -> None:
    watch = Watch(calibration, metrics_of(OURS), every_s=0)
    for _ in range(100):
        watch.record([(200, result(2.0))], STAGES, 1)
    assert lines()[-1] == ("medad_drift_alarm", 1, "model_name:m,worker:0")


def test_a_server_with_other_metrics_is_told_nothing(
    calibration: Calibration, lines: Callable[[], list[tuple[str, float, str]]]
) -> None:
    watch = Watch(calibration, metrics_of(torchserves()), every_s=0)
    watch.record([(200, result(2.0))], STAGES, 1)
    assert lines() == []
    assert watch.window.state().patients == 1


def test_a_fault_in_watching_costs_no_answer_and_quotes_none(
    calibration: Calibration, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(calibration)

    def failing(*args: object, **how: object) -> None:
        raise ValueError("DOE^JANE")

    monkeypatch.setattr(watch.window, "add", failing)
    watch.record([(200, result(2.0))], STAGES, 1)
    assert "watching failed: ValueError at test_watch.py" in caplog.text
    assert "DOE" not in caplog.text


def test_torchserves_own_metrics_are_all_declared() -> None:
    """It reads one file: what that leaves out, its frontend cannot tell."""

    def declared(path: Path) -> dict[tuple[str, str, str], tuple[str, tuple[str, ...]]]:
        sections = yaml.safe_load(path.read_text())
        return {
            (section, kind, metric["name"]): (metric["unit"], tuple(metric["dimensions"]))
            for section in ("ts_metrics", "model_metrics")
            for kind, metrics in sections[section].items()
            for metric in metrics
        }

    theirs, ours = declared(torchserves()), declared(OURS)
    assert {key: ours.get(key) for key in theirs} == theirs
    assert all(name.startswith("medad_") for _, _, name in ours.keys() - theirs.keys())


def test_the_command_shows_each_worker_and_fails_at_an_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    gauges = {
        "patients": 100,
        "share_anomalous": 0.25,
        "ks": 0.5,
        "ks_alarm_level": 0.3,
        "psi": 2,
        "psi_alarm_level": 1,
    }
    text = ""
    for worker, values in {"9000": gauges | {"alarm": 1}, "9001": dict.fromkeys([*gauges, "alarm"], 0)}.items():
        for name, value in values.items():
            text += (
                f'# TYPE x gauge\nmedad_drift_{name}{{model_name="m",worker="{worker}",Hostname="h",}} {float(value)}\n'
            )
    monkeypatch.setattr(
        httpx, "get", lambda url, **_: httpx.Response(200, text=text, request=httpx.Request("GET", url))
    )
    shown = CliRunner().invoke(drift, ["--url", "http://here"])
    assert shown.exit_code == 1
    assert re.search(r"^m +9000 +100 +25.0% +0.500 of 0.300 +2.000 of 1.000 +alarm *$", shown.output, re.MULTILINE)
    assert re.search(r"^m +9001 +0 +0.0% +too few to tell *$", shown.output, re.MULTILINE)


@pytest.mark.parametrize("fault", ["refused", "other"])
def test_the_command_says_what_it_cannot_read(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(url: str, **_: object) -> httpx.Response:
        if fault == "refused":
            raise httpx.ConnectError("connection refused")
        return httpx.Response(200, text="Requests2XX 1.0\n", request=httpx.Request("GET", url))

    monkeypatch.setattr(httpx, "get", answer)
    expected = {"refused": r"cannot be read \(connection refused\). Check --url", "other": "no worker tells of drift"}
    with pytest.raises(MedadError, match=expected[fault]):
        drift.main(["--url", "http://here"], standalone_mode=False)


@pytest.mark.parametrize(
    ("arguments", "worker"),
    [
        (["w.py", "--sock-type", "unix", "--sock-name", "/t/.ts.sock.9001", "--metrics-config", "m7"], "9001"),
        (["w.py", "--sock-type", "tcp", "--host", "127.0.0.1", "--port", "9002"], "9002"),
        (["pytest", "--sock-name"], "0"),
    ],
)
def test_the_worker_is_named_as_torchserve_numbers_it(arguments: list[str], worker: str) -> None:
    assert worker_of(arguments) == worker


@pytest.fixture(scope="module")
def server(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    store = tmp_path_factory.mktemp("store")
    archive(artifact, store, name="probe", workers=2, batch_size=4)
    made = Server(store, Ports.free())
    made.start()
    yield made
    if made.process():
        made.stop(drain=0)


def scrape(server: Server) -> dict[tuple[str, str], float]:
    """Value of each of our metrics by name and by its one label beside model and host."""
    text = httpx.get(server.url("metrics") + "/metrics", trust_env=False).text
    found = re.findall(r'^(medad_\w+)\{model_name="probe",\w+="(\w+)",Hostname="[^"]*",\} (\S+)$', text, re.MULTILINE)
    assert len(found) == len(re.findall(r"^medad_", text, re.MULTILINE))
    return {(name, label): float(value) for name, label, value in found}


def settled(server: Server, ready: Callable[[dict[tuple[str, str], float]], bool]) -> dict[tuple[str, str], float]:
    """Scrape until the lines of the workers have arrived: they come after the answers, by another way."""
    deadline = time.monotonic() + 60
    while not ready(found := scrape(server)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def workers(server: Server) -> dict[str, int]:
    key = json.loads(server.key_file.read_text())["management"]["key"]
    answer = httpx.get(
        f"{server.url('management')}/models/probe", headers={"Authorization": f"Bearer {key}"}, trust_env=False
    )
    return {worker["id"]: worker["pid"] for worker in answer.json()[0]["workers"]}


@pytest.mark.server
def test_prometheus_tells_what_two_workers_were_sent(server: Server, dicom_files: list[Path]) -> None:
    sources: list[Any] = [*dicom_files, b"no image", b""]
    with Client(server.url("inference"), key_file=server.key_file) as client:
        answers = [*client.predict_many(sources, "probe", concurrency=8)]
        time.sleep(2)  # both workers are due to tell their gauges
        answers += client.predict_many(dicom_files[:16], "probe", concurrency=8)
    codes = Counter(str(answer.get("error", {}).get("code", 200)) for answer in answers)
    found = settled(
        server, lambda told: sum(v for (n, _), v in told.items() if n == "medad_requests_total") >= len(answers)
    )
    assert {label: v for (name, label), v in found.items() if name == "medad_requests_total"} == codes
    batches = {int(label): v for (name, label), v in found.items() if name == "medad_batches_total"}
    assert sum(size * count for size, count in batches.items()) == len(answers)
    bands = {label: v for (name, label), v in found.items() if name == "medad_answers_total"}
    assert sum(bands.values()) == codes["200"]
    assert bands.get("anomalous", 0) == sum(answer.get("anomalous", False) for answer in answers)
    assert min(v for (name, _), v in found.items() if name == "medad_stage_milliseconds_total") > 0
    told = {label for name, label in found if name == "medad_drift_alarm"}
    assert told == set(workers(server))
    # two slices a patient, each sent alone
    assert 0 < sum(v for (name, _), v in found.items() if name == "medad_drift_patients") <= codes["200"] / 2
    shown = CliRunner().invoke(drift, ["--url", server.url("metrics")], catch_exceptions=False)
    assert all(re.search(rf"^probe +{worker} ", shown.output, re.MULTILINE) for worker in told)
    assert shown.exit_code == max(v for (name, _), v in found.items() if name == "medad_drift_alarm")


@pytest.mark.server
def test_a_decoder_that_is_killed_is_counted(server: Server, dicom_files: list[Path]) -> None:
    decoders = [
        process
        for pid in workers(server).values()
        for process in psutil.Process(pid).children()
        if "medad_serve.serving.decoder_process" in process.cmdline()
    ]
    assert len(decoders) == 2
    before = scrape(server).get(("medad_decoder_losses_total", "died"), 0)
    for process in decoders:
        process.kill()
    rewritten = pydicom.dcmread(dicom_files[0])
    rewritten.compress(pydicom.uid.RLELossless)
    buffer = io.BytesIO()
    rewritten.save_as(buffer)
    with Client(server.url("inference"), key_file=server.key_file) as client:
        answers = [*client.predict_many([buffer.getvalue()] * 16, "probe", concurrency=8)]
    assert all("score" in answer for answer in answers)
    after = settled(server, lambda told: told.get(("medad_decoder_losses_total", "died"), 0) > before)
    assert 1 <= after["medad_decoder_losses_total", "died"] - before <= 2


@pytest.mark.server
def test_a_restarted_worker_starts_with_an_empty_window_and_counters_stay(server: Server) -> None:
    before = scrape(server)
    name, pid = next((name, pid) for name, pid in workers(server).items() if before["medad_drift_patients", name])
    os.kill(pid, 9)
    after = settled(server, lambda told: told["medad_drift_patients", name] == 0)
    assert after["medad_drift_patients", name] == 0
    assert after["medad_requests_total", "200"] == before["medad_requests_total", "200"]
