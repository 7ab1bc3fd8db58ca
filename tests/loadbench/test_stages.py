"""Stages add up to what the clients waited."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from medad_serve.loadbench import Load, Sent
from medad_serve.loadbench.counters import Counters, counters_of, read_counters
from medad_serve.loadbench.plots import plot_loads, plot_stages
from medad_serve.loadbench.stages import STAGES, Breakdown, in_process, pooled, split
from medad_serve.predictor import Predictor
from medad_serve.server import Ports

TOLD = {"read": 0.1, "decode": 1.0, "prepare": 0.5, "infer": 3.0, "encode": 0.2, "handle": 9.0}
METRICS = """\
# TYPE ts_inference_requests_total counter
ts_inference_requests_total{model_name="a",model_version="default",hostname="h",} 20.0
ts_inference_requests_total{model_name="b",model_version="default",hostname="h",} 999.0
ts_inference_latency_microseconds{model_name="a",model_version="default",hostname="h",} 300000.0
ts_queue_latency_microseconds{model_name="a",model_version="default",hostname="h",} 60000.0
medad_batches_total{model_name="a",size="8",Hostname="h",} 2.0
medad_batches_total{model_name="a",size="1",Hostname="h",} 4.0
medad_batches_total{model_name="b",size="8",Hostname="h",} 7.0
medad_decoder_losses_total{model_name="a",how="died",Hostname="h",} 3.0
medad_decoder_losses_total{model_name="b",how="hung",Hostname="h",} 1.0
"""


def load(mean: float, stages: dict[str, float], clients: int = 4) -> Load:
    return Load(clients, 10.0, 100, 10.0, mean, mean, mean, mean, stages, {})


def test_every_stage_of_torchserve_is_told_apart() -> None:
    found = split(load(20.0, TOLD), Counters(requests=10, queue_ms=40.0, served_ms=150.0))
    assert tuple(found) == tuple(STAGES)
    assert found == pytest.approx(
        {
            "transport": 20 - 15,  # not within TorchServe's own clock
            "queue": 4,
            "hand-over": 15 - 4 - 9,
            "neighbours": 9 - 4.8,
            "read": 0.1,
            "decode": 1,
            "prepare": 0.5,
            "infer": 3,
            "encode": 0.2,
        }
    )
    assert sum(found.values()) == pytest.approx(20)


@pytest.mark.parametrize("told", [{}, TOLD, {**TOLD, "queue": 2.5}])
def test_without_counters_the_rest_is_transport(told: dict[str, float]) -> None:
    found = split(load(20.0, told))
    assert sum(found.values()) == pytest.approx(20)
    assert found["transport"] == pytest.approx(20 - told.get("handle", 0) - told.get("queue", 0))


def test_rounds_are_pooled_by_their_requests() -> None:
    parts = [
        Breakdown("ours", 4, 10, 5.0, 8.0, 2.0, {"transport": 6.0, "infer": 2.0}),
        Breakdown("ours", 4, 30, 10.0, 4.0, 1.0, {"transport": 3.0, "infer": 1.0}),
    ]
    found = pooled(parts)
    assert found == Breakdown("ours", 4, 40, 40 / 5, 5.0, 1.25, {"transport": 3.75, "infer": 1.25})
    assert pooled([*parts, Breakdown("ours", 4, 1, 1.0, 1.0, None, parts[0].stages)]).cpu_ms is None


def test_counters_are_those_of_the_model_and_of_the_load() -> None:
    before = counters_of(METRICS, "a")
    assert before == Counters(20, 60, 300, Counter({8: 2, 1: 4}), Counter(died=3))
    later = METRICS.replace("20.0", "30.0").replace('how="died",Hostname="h",} 3', 'how="died",Hostname="h",} 4')
    after = counters_of(later.replace('size="8",Hostname="h",} 2', 'size="8",Hostname="h",} 5'), "a")
    assert after.since(before) == Counters(10, 0, 0, Counter({8: 3}), Counter(died=1))
    assert read_counters(f"http://127.0.0.1:{Ports.free().metrics}", "a") is None


def test_in_process_a_request_waits_for_its_batch_and_nothing_else(artifact: Path, dicom_files: list[Path]) -> None:
    bodies = [Sent(file.read_bytes()) for file in dicom_files[:3]]
    found = in_process(Predictor.load(artifact), bodies, 16, 4, 0.2)
    assert found.clients == 16
    assert found.requests % 4 == 0 < found.requests
    assert sum(found.stages.values()) == pytest.approx(found.latency_ms)
    assert found.stages["neighbours"] >= 3 * found.stages["decode"] > 0  # those of three others


def test_plots_are_written(tmp_path: Path) -> None:
    stages = split(load(20.0, TOLD), Counters(10, 40, 150))
    bars = [Breakdown(way, clients, 9, 3.0, 20.0, None, stages) for clients in (1, 16) for way in ("a", "b")]
    plot_stages(bars, tmp_path / "stages.png")
    plot_loads([load(20.0, TOLD, clients) for clients in (1, 4)], tmp_path / "load.svg")
    assert (tmp_path / "stages.png").read_bytes().startswith(b"\x89PNG")
    assert all(word in (tmp_path / "load.svg").read_text() for word in ("<svg", "</svg>"))
