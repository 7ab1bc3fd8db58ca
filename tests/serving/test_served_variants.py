"""Reduced precisions and OpenVINO behind a real TorchServe: archived, served and answered like any other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from medad_serve.errors import MedadError
from medad_serve.evaluation import make_bundle
from medad_serve.export.archive import archive
from medad_serve.export.artifact import export
from medad_serve.predictor import Predictor
from medad_serve.runtime import lacking
from medad_serve.server import Ports, Server
from medad_serve.training.run import open_run

pytestmark = pytest.mark.server
NAMED = {"ort8": "onnx/int8", "ov": "openvino", "ov8": "openvino/int8"}
VARIANTS = {name: variant for name, variant in NAMED.items() if not lacking(variant)}


@pytest.fixture(scope="module")
def reduced(run_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run, target = open_run(run_path), tmp_path_factory.mktemp("reduced") / "artifact"
    export(make_bundle(run, run.prepared()), list(VARIANTS.values()), target)
    return target


@pytest.fixture(scope="module")
def served(reduced: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    store = tmp_path_factory.mktemp("store")
    for name, variant in VARIANTS.items():
        archive(reduced, store, name=name, runtime=variant)
    server = Server(store, Ports.free())
    server.start()
    try:
        key = json.loads(server.key_file.read_text())["inference"]["key"]
        token = {"Authorization": f"Bearer {key}"}
        with httpx.Client(base_url=server.url("inference"), headers=token, trust_env=False, timeout=60) as client:
            yield client
    finally:
        server.stop(drain=0)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_answers_over_http_as_in_process(
    served: httpx.Client, reduced: Path, dicom_files: list[Path], name: str
) -> None:
    predictor = Predictor.load(reduced, runtime=VARIANTS[name])
    files = [path.read_bytes() for path in dicom_files[:12]]
    with ThreadPoolExecutor(6) as pool:
        answers = [a.json() for a in pool.map(lambda data: served.post(f"/predictions/{name}", content=data), files)]
    for found, expected in zip(answers, predictor.predict(files), strict=True):
        assert found["score"] == pytest.approx(expected.score, rel=1e-5)
        assert (found["cutoff"], found["anomalous"]) == (expected.cutoff, expected.anomalous)


def test_a_runtime_that_is_missing_here_is_told_before_anything_starts(
    reduced: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive(reduced, tmp_path / "store", name="ort8", runtime="onnx/int8")
    monkeypatch.setattr("medad_serve.server.server.lacking", lambda _: "onnxruntime is not installed")
    with pytest.raises(MedadError, match="ort8 cannot be served here: onnxruntime is not installed"):
        Server(tmp_path / "store", Ports.free()).start()
