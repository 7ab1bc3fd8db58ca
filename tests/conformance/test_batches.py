"""Every registered model in a batch: an item is answered as it is alone, whatever its neighbours do."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ts.context import Context, RequestProcessor
from untrained import export_untrained

from medad_serve.handlers.medad_handler import MedadHandler
from medad_serve.models import families
from medad_serve.predictor import Options, Predictor
from medad_serve.runtime import Outputs, may_mix
from medad_serve.serving.isolation import IsolatedDecoder
from medad_serve.spec import Manifest

SUPPORT = Path(__file__).parents[1] / "support"
POISONS = (b"words", b"hang", b"crash", b"")
NUMBERS = ("score", "p_value", "cutoff", "anomalous", "probability", "severity")


@pytest.fixture(scope="module")
def decoder() -> Iterator[IsolatedDecoder]:
    """Hangs and dies where a source says so; decoding a batch may take 3 seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(SUPPORT))
        made = IsolatedDecoder(budget_s=3, module="faulty_codec")
        yield made
        made.close()


@pytest.fixture(scope="module", params=families().values(), ids=lambda f: f.name)
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model at the size in which it is tried, exported for both runtimes, that takes files of any modality."""
    directory = tmp_path_factory.mktemp(request.param.name)
    export_untrained(request.param.trial(), directory)
    return directory


def _items(manifest: Manifest, count: int) -> list[bytes]:
    """Images or volumes of any grey values as .npy, for whose reading the decoder process is needed."""
    rng, items = np.random.default_rng(0), []
    for _ in range(count):
        buffer = io.BytesIO()
        np.save(buffer, rng.integers(0, 120, [40] * len(manifest.prep.size), np.uint8))
        items.append(buffer.getvalue())
    return items


def _handler(artifact: Path, runtime: str, decoder: IsolatedDecoder, most: int = 10**8) -> MedadHandler:
    handler = MedadHandler()
    settings = {"runtime": runtime, "max_answer_bytes": most}
    handler.initialize(Context("m", str(artifact), {}, 8, None, "0.12.0", model_yaml_config={"handler": settings}))
    handler.predictor.decoder.close()
    handler.predictor.decoder = decoder
    return handler


def _ask(handler: MedadHandler, bodies: list[bytes], asking: int | None = None) -> list[tuple[int, dict[str, Any]]]:
    """Post one batch; the item ``asking`` wants its heatmap as numbers."""
    context = Context("m", "", {}, 8, None, "0.12.0")
    headers = [{"X-Medad-Heatmap": "npy"} if index == asking else {} for index in range(len(bodies))]
    context.request_processor = [RequestProcessor(header) for header in headers]
    answers = handler.handle([{"body": bytearray(body)} for body in bodies], context)
    return [(context.get_response_status(i)[0], json.loads(answer)) for i, answer in enumerate(answers)]


def _assert_same(found: dict[str, Any], alone: dict[str, Any]) -> None:
    assert found.keys() == alone.keys()
    for name in NUMBERS:
        assert found.get(name) == (name in alone and pytest.approx(alone[name], rel=1e-6)) or name not in alone


def test_poisoned_neighbours_change_no_answer(artifact: Path, decoder: IsolatedDecoder) -> None:
    handler = _handler(artifact, "onnx", decoder, most=3000)
    goods = _items(handler.predictor.manifest, 3)
    alone = [_ask(handler, [good])[0] for good in goods]
    assert [code for code, _ in alone] == [200] * 3
    lost = decoder.losses.total()
    batch = [goods[0], *POISONS[:2], goods[1], *POISONS[2:], goods[2], goods[0]]
    answers = _ask(handler, batch, asking=len(batch) - 1)
    assert [code for code, _ in answers] == [200, 400, 413, 200, 400, 400, 200, 413]
    assert "without the heatmap" in answers[-1][1]["error"]["hint"]
    for (_, found), (_, single) in zip([answers[0], answers[3], answers[6]], alone, strict=True):
        _assert_same(found, single)
    assert decoder.losses.total() - lost == 4  # the one that hung and the one that kills, tried twice each


@pytest.mark.parametrize("runtime", ["onnx", "torchscript"])
def test_an_answer_is_the_same_in_every_batch(artifact: Path, decoder: IsolatedDecoder, runtime: str) -> None:
    predictor = Predictor.load(artifact, runtime=runtime, threads=1, decoder=decoder)
    goods = _items(predictor.manifest, 9)
    series = np.random.default_rng(1).uniform(*predictor.manifest.prep.values, (5, *predictor.manifest.input_shape))
    items = [*goods, series.astype(np.float32)]
    alone = [predictor.predict([item])[0].to_json() for item in items]
    for size in (2, 5, 10):
        for found, single in zip(predictor.predict(items[-size:]), alone[-size:], strict=True):
            _assert_same(found.to_json(), single)
            for a, b in zip(found.slices or (), single.get("slices", ()), strict=True):
                assert a.score == pytest.approx(b["score"], rel=1e-6)
    asked = predictor.predict(items, [Options(heatmap="npy"), *[Options()] * 9])
    assert [answer.heatmap is not None for answer in asked] == [True] + [False] * 9
    for found, single in zip(asked, alone, strict=True):
        assert found.score == pytest.approx(single["score"], rel=1e-6)


class _Runtime:
    """Scores are sums; ``moves`` makes them depend on the size of the call, ``item_s`` is what each costs."""

    def __init__(self, moves: bool, call_s: float) -> None:
        self.moves, self.call_s = moves, call_s

    def run(self, batch: Any, names: Any) -> Outputs:
        import time

        time.sleep(self.call_s)
        return {"score": batch.reshape(len(batch), -1).sum(1) + np.float32(1e-3 * self.moves * len(batch))}


def test_sources_share_calls_only_where_that_changes_nothing_and_pays() -> None:
    assert may_mix(_Runtime(False, 0.002), (1, 4, 4), (0, 1), ["score"])
    assert not may_mix(_Runtime(True, 0.002), (1, 4, 4), (0, 1), ["score"])
    assert not may_mix(_Runtime(False, 0.05), (1, 4, 4), (0, 1), ["score"])
