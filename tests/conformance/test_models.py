"""Every registered model, by the same checks: adding a model adds its tests."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch

from medad_serve.data import load_prepared, read_table
from medad_serve.data.phantoms import PHANTOMS
from medad_serve.export.graph import EagerRuntime
from medad_serve.export.onnx import export_onnx
from medad_serve.export.parity import RELATIVE_TOLERANCE, relative_difference
from medad_serve.export.torchscript import export_torchscript
from medad_serve.models import Batch, Family, count_parameters, families
from medad_serve.runtime import OnnxRuntime, TorchScriptRuntime
from medad_serve.spec import validated

EXPORTS = {"onnx": export_onnx, "torchscript": export_torchscript}


@pytest.fixture(params=families().values(), ids=lambda f: f.name)
def chosen(request: pytest.FixtureRequest) -> Family:
    return request.param


def _batch(chosen: Family, n: int = 4, seed: int = 0) -> torch.Tensor:
    low, high = chosen.prep.output_range
    x = torch.rand(n, *chosen.shape(chosen.prep), generator=torch.Generator().manual_seed(seed))
    return x * (high - low) + low


def _settled(chosen: Family) -> torch.nn.Module:
    """A model whose running statistics are those of some batches, in evaluation mode."""
    torch.manual_seed(0)
    model = chosen.build().train()
    with torch.no_grad():
        for seed in range(5):
            model(_batch(chosen, 8, seed))
    return model.eval()


def test_outputs_have_their_names_and_shapes(chosen: Family) -> None:
    model = _settled(chosen)
    x = _batch(chosen)
    with torch.no_grad():
        found = model(x)
    assert tuple(found) == model.outputs
    assert model.outputs[0] == "score"
    assert found["score"].shape == (4,)
    assert found["heatmap"].shape == (4, 1, *x.shape[2:])
    assert all(torch.isfinite(v).all() for v in found.values())


def test_every_parameter_gets_a_gradient(chosen: Family) -> None:
    model = chosen.build().train()
    terms = model.loss(Batch.of(_batch(chosen, 8)))
    assert terms["loss"].ndim == 0
    terms["loss"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
        assert torch.isfinite(parameter.grad).all(), name


def test_a_few_steps_lower_the_loss(chosen: Family) -> None:
    torch.manual_seed(0)
    model = chosen.build().train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    x = _batch(chosen, 8)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = model.loss(Batch.of(x))["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_scores_do_not_depend_on_the_neighbours(chosen: Family) -> None:
    model, x = _settled(chosen), _batch(chosen, 5)
    with torch.no_grad():
        together = model(x)["score"]
        alone = torch.cat([model(x[i : i + 1])["score"] for i in range(5)])
    assert torch.allclose(together, alone, rtol=1e-5)


def test_weights_survive_saving(chosen: Family, tmp_path: Path) -> None:
    model = _settled(chosen)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    other = chosen.build().eval()
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    with torch.no_grad():
        assert torch.equal(model(_batch(chosen))["score"], other(_batch(chosen))["score"])


@pytest.mark.parametrize("kind", EXPORTS)
def test_exports_score_as_the_model_at_any_batch(chosen: Family, kind: str, tmp_path: Path) -> None:
    model, path = _settled(chosen), tmp_path / "model"
    EXPORTS[kind](model, chosen.shape(chosen.prep), path)
    runtime = OnnxRuntime(path) if kind == "onnx" else TorchScriptRuntime(path, model.outputs)
    for batch in (1, 2, 7):
        x = _batch(chosen, batch, seed=9).numpy()
        expected = EagerRuntime(model).run(x, model.outputs)
        found = runtime.run(x, model.outputs)
        for name in model.outputs:
            assert found[name].shape == expected[name].shape
            assert relative_difference(found[name], expected[name]) < RELATIVE_TOLERANCE, name


def test_onnx_file_is_self_contained_with_a_dynamic_batch(chosen: Family, tmp_path: Path) -> None:
    export_onnx(chosen.build().eval(), chosen.shape(chosen.prep), tmp_path / "model.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param
    assert not any(t.external_data for t in graph.initializer)


def test_default_settings_are_accepted_and_unknown_ones_named(chosen: Family) -> None:
    assert count_parameters(chosen.build()) > 0
    validated(chosen.settings, {}, "settings")
    with pytest.raises(Exception, match="no_such_setting"):
        validated(chosen.settings, {"no_such_setting": 1}, "settings")


def test_prepared_phantoms_have_the_models_shape(chosen: Family, tmp_path: Path) -> None:
    phantom = PHANTOMS[chosen.phantom]
    phantom.write(tmp_path / "data", healthy=2, abnormal=1, slices=1, seed=0)
    table = read_table(f"{phantom.layout}:{tmp_path / 'data'}")
    made = load_prepared(table, chosen.prep, chosen.input, root=tmp_path / "cache")
    assert made.tensor.shape[1:] == chosen.shape(chosen.prep)
    assert made.labels.sum() == 1
    assert not made.faults
    low, high = chosen.prep.output_range
    assert low <= made.tensor.min() < made.tensor.max() <= high
