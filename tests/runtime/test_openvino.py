from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from untrained import export_untrained

from medad_serve.errors import MedadError
from medad_serve.models import family
from medad_serve.models.smoothing import box_mean, repeated
from medad_serve.runtime import OnnxRuntime, OpenVinoRuntime, joined, lacking, open_runtime

pytestmark = pytest.mark.skipif(lacking("openvino") is not None, reason=lacking("openvino") or "")
NAMES = ("score", "heatmap")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    export_untrained(family("ae"), folder, ["onnx", "openvino", "openvino/int8"])
    return folder


def _items(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((n, 1, 64, 64), np.float32)


def test_its_own_graph_answers_as_that_of_onnxruntime_does(exported: Path) -> None:
    ours, other = open_runtime(exported, "openvino", NAMES), OnnxRuntime(exported / "model.onnx")
    for batch in (1, 3, 8):
        found, expected = ours.run(_items(batch), NAMES), other.run(_items(batch), NAMES)
        for name in NAMES:
            assert np.allclose(found[name], expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("variant", ["openvino", "openvino/int8"])
def test_a_batch_of_any_size_is_made_up_of_calls_of_few_sizes(
    exported: Path, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import openvino

    compiled: list[int] = []

    class Counting(openvino.Core):
        def compile_model(self, graph: Any, *rest: Any) -> Any:
            compiled.append(graph.input(0).get_shape()[0])
            return super().compile_model(graph, *rest)

    monkeypatch.setattr(openvino, "Core", Counting)
    runtime = open_runtime(exported, variant, NAMES)
    assert compiled == [1]
    items = _items(29)
    alone = joined([runtime.run(items[i : i + 1], NAMES) for i in range(len(items))])
    for batch in (29, 12, 2, 29):
        found = runtime.run(items[:batch], NAMES)
        for name in NAMES:
            np.testing.assert_allclose(found[name], alone[name][:batch], rtol=1e-5, atol=1e-7)
    assert compiled == [1, 8, 4, 2]


def test_sizes_are_compiled_in_advance_and_once_by_whatever_thread(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = OpenVinoRuntime(exported / "model.openvino.onnx")
    sizes = [size % 15 + 1 for size in range(60)]
    with ThreadPoolExecutor(4) as pool:
        scores = list(pool.map(lambda size: runtime.run(_items(size), ["score"])["score"], sizes))
    alone = runtime.run(_items(1), ["score"])["score"]
    assert [len(score) for score in scores] == sizes
    assert np.allclose([score[0] for score in scores], alone, rtol=1e-5)

    opened = OpenVinoRuntime(exported / "model.openvino.onnx")
    opened.compile(5)
    monkeypatch.setattr(opened, "_core", None)  # compiles no more
    opened.run(_items(7), ["score"])
    with pytest.raises(AttributeError):
        opened.run(_items(8), ["score"])


def test_outputs_stay_as_they_are_when_the_next_batch_runs(exported: Path) -> None:
    runtime = open_runtime(exported, "openvino", NAMES)
    first = runtime.run(_items(2, seed=1), NAMES)
    kept = {name: value.copy() for name, value in first.items()}
    runtime.run(_items(2, seed=2), NAMES)
    assert all(np.array_equal(first[name], kept[name]) for name in NAMES)


def test_threads_share_it_without_mixing_their_answers(exported: Path) -> None:
    runtime = open_runtime(exported, "openvino", NAMES)
    items = [_items(1, seed) for seed in range(40)]
    alone = [runtime.run(item, ["score"])["score"] for item in items]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda item: runtime.run(item, ["score"])["score"], items))
    assert np.allclose(alone, together, rtol=1e-5)


def test_a_cpu_without_bfloat16_refuses_what_was_calibrated_in_it(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import openvino

    class Older(openvino.Core):
        def get_property(self, device: str, name: str) -> list[str]:
            return ["FP32", "INT8"]

    monkeypatch.setattr(openvino, "Core", Older)
    with pytest.raises(MedadError, match="this CPU has no bfloat16"):
        open_runtime(exported, "openvino/bfloat16", NAMES)
    open_runtime(exported, "openvino", NAMES)


def test_a_gpu_is_refused_with_what_to_do(exported: Path) -> None:
    with pytest.raises(MedadError, match=r"for the CPU. Use device=cpu, or the runtime onnx on CUDA"):
        open_runtime(exported, "openvino", NAMES, device="cuda:0")


def test_a_file_that_is_no_graph_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(MedadError, match="OpenVINO cannot load"):
        OpenVinoRuntime(tmp_path / "model.onnx")


def test_what_is_not_installed_is_named_with_its_extra(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medad_serve.runtime.find_spec", lambda _: None)
    with pytest.raises(MedadError, match=r"openvino is not installed: pip install 'medad-serve\[openvino\]'"):
        open_runtime(exported, "openvino/float32", NAMES)


class _Smoothed(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return box_mean(x, 5), repeated(x, 3)


@pytest.mark.parametrize("shape", [(2, 1, 24, 16), (2, 1, 8, 12, 16)], ids=str)
def test_bfloat16_takes_no_digits_of_what_maps_are_smoothed_by(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """It computes in bfloat16 whatever leads to a convolution or a product of matrices, and leaves what follows."""
    x, graph = torch.rand(shape, generator=torch.Generator().manual_seed(0)), tmp_path / "model.onnx"
    made = torch.onnx.export(
        _Smoothed().eval(),
        (x,),
        dynamo=True,
        output_names=["smooth", "wide"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    assert made is not None
    made.save(str(graph))
    try:
        runtime = OpenVinoRuntime(graph, precision="bfloat16")
    except MedadError as error:
        if "no bfloat16" not in str(error):
            raise
        pytest.skip(str(error))
    found, expected = runtime.run(x.numpy(), ("smooth", "wide")), _Smoothed()(x)
    assert np.allclose(found["smooth"], expected[0].numpy(), rtol=0, atol=1e-6)
    assert np.array_equal(found["wide"], expected[1].numpy())
