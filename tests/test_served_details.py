"""What supervised and severity models add to an answer, over HTTP: chest films in every form, graded maps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from medad_serve.client import Client
from medad_serve.data.phantoms import write_chest
from medad_serve.evaluation import export_run
from medad_serve.export.archive import archive
from medad_serve.predictor import Predictor
from medad_serve.server import Ports, Server
from medad_serve.training.config import resolve
from medad_serve.training.fit import fit
from medad_serve.training.run import Run, create_run, open_run

FILMS = (
    "prep.size=[64,64]",
    "train.max_epochs=1",
    "train.batch_size=8",
    "train.learning_rate=3e-3",
    "calibration.method=held_out",
    "calibration.policy=specificity=0.8",
)

pytestmark = [pytest.mark.server, pytest.mark.slow]


@pytest.fixture(scope="module")
def exported(
    draem_quickstart: tuple[Path, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Run, Path]]:
    """Run and artifact of a classifier of films, trained for an epoch, and of the quickstart's DRAEM."""
    root = tmp_path_factory.mktemp("details")
    write_chest(root / "data", healthy=40, abnormal=12, slices=1, seed=3)
    films = create_run(resolve("efficientnet_b0", f"folders:{root / 'data'}", None, FILMS), root / "runs")
    fit(films, films.prepared())
    maps = open_run(draem_quickstart[0])
    return {"efficientnet_b0": (films, export_run(films, ["onnx"])), "draem": (maps, maps.artifact)}


@pytest.fixture(scope="module")
def client(exported: dict[str, tuple[Run, Path]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """One TorchServe with both."""
    store = tmp_path_factory.mktemp("store")
    for model, (_, artifact) in exported.items():
        archive(artifact, store, name=model)
    server = Server(store, Ports.free())
    server.start()
    try:
        with Client(server.url("inference"), key_file=server.key_file) as opened:
            yield opened
    finally:
        server.stop()


def _answers(client: Client, exported: dict[str, tuple[Run, Path]], model: str) -> list[tuple[Path, dict[str, Any]]]:
    run, artifact = exported[model]
    files = [s.path for s in run.table().samples]
    answers = list(client.predict_many(files, model))
    expected = Predictor.load(artifact).predict(files)
    for answer, wanted in zip(answers, expected, strict=True):
        known = wanted.to_json()
        assert answer.keys() == known.keys()
        for name in ("score", "probability", "severity"):
            # The server's worker runs another number of threads, and sums come out in another order.
            assert answer.get(name) == (known.get(name) and pytest.approx(known[name], rel=1e-4, abs=1e-5))
    return list(zip(files, answers, strict=True))


def test_films_are_answered_with_a_probability_whatever_their_form(
    client: Client, exported: dict[str, tuple[Run, Path]]
) -> None:
    answers = _answers(client, exported, "efficientnet_b0")
    forms = {(path.suffix, answer["input"]["modality"]) for path, answer in answers}
    assert {modality for _, modality in forms} >= {"", "DX"}
    assert all(0 < answer["probability"] < 1 for _, answer in answers)
    assert len({answer["probability"] for _, answer in answers}) > len(answers) // 2
    assert any(answer["input"].get("window") for _, answer in answers)
    assert any(answer["input"].get("voi_lut") for _, answer in answers)


def test_maps_are_answered_with_a_severity(client: Client, exported: dict[str, tuple[Run, Path]]) -> None:
    answers = _answers(client, exported, "draem")
    assert all(0 <= answer["severity"] <= 10 for _, answer in answers)
    assert len({answer["severity"] for _, answer in answers}) > len(answers) // 2
    assert not any("probability" in answer for _, answer in answers)


def test_a_head_ct_is_no_chest_film(client: Client, make_ct: Any, make_slice: Any, tmp_path: Path) -> None:
    make_ct(make_slice(0)).save_as(tmp_path / "head.dcm")
    (answer,) = client.predict_many([tmp_path / "head.dcm"], "efficientnet_b0")
    assert answer["error"]["code"] == 422
    assert "the model reads CR or DX" in answer["error"]["message"]
