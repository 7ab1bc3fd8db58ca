"""Every registered model, by the same checks: adding a model adds its tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from medad_serve.artifact import GRAPHS, graph_of
from medad_serve.data import load_prepared, read_table
from medad_serve.data.phantoms import PHANTOMS
from medad_serve.errors import MedadError
from medad_serve.export.graph import EagerRuntime
from medad_serve.export.graphs import Graphs
from medad_serve.export.parity import check_parity
from medad_serve.models import AnomalyModel, Batch, Family, count_parameters, families
from medad_serve.runtime import Runtime, lacking
from medad_serve.spec import FLOAT32, validated

EXACT = [name for name in GRAPHS if name.endswith(f"/{FLOAT32}")]
REDUCED = [name for name in GRAPHS if name not in EXACT]
STEPS = 60


@pytest.fixture(params=families().values(), ids=lambda f: f.name)
def family(request: pytest.FixtureRequest) -> Family:
    """A model at its full size."""
    return request.param


@pytest.fixture
def chosen(family: Family) -> Family:
    """A model at the size in which it is tried."""
    return family.trial()


def _smooth(chosen: Family, n: int, seed: int) -> Tensor:
    """Soft blobs around the middle of the range: something that a model of normals can learn."""
    low, high = chosen.prep.values
    generator = torch.Generator().manual_seed(seed)
    channels, *size = chosen.shape(chosen.prep)
    coarse = torch.rand(n, channels, *[4] * len(size), generator=generator)
    mode = "trilinear" if len(size) == 3 else "bilinear"
    return low + (high - low) * (0.3 + 0.3 * F.interpolate(coarse, size=tuple(size), mode=mode))


def _with_defect(chosen: Family, x: Tensor, strength: float) -> Tensor:
    """Brighten a block in the middle, a quarter of each side."""
    low, high = chosen.prep.values
    out = x.clone()
    middle = tuple(slice(side * 3 // 8, side * 5 // 8) for side in x.shape[2:])
    out[(slice(None), slice(None), *middle)] += strength * 0.4 * (high - low)
    return out


def _batch(chosen: Family, n: int = 4, seed: int = 0) -> Tensor:
    low, high = chosen.prep.values
    x = torch.rand(n, *chosen.shape(chosen.prep), generator=torch.Generator().manual_seed(seed))
    return x * (high - low) + low


def _labelled(model: AnomalyModel, chosen: Family, x: Tensor) -> Batch:
    """What the model learns from: normals, and for a supervised one every other item with a defect."""
    batch = Batch.of(x)
    if not model.supervised:
        return batch
    labels = batch.rows % 2
    sick = _with_defect(chosen, x, 1.0)
    return batch._replace(x=torch.where(labels.bool().view(-1, *[1] * (x.ndim - 1)), sick, x), labels=labels)


_at_rest: dict[str, AnomalyModel] = {}


def _settled(chosen: Family) -> AnomalyModel:
    """A model whose running statistics are those of some batches, in evaluation mode; made once, not to be changed."""
    if chosen.name not in _at_rest:
        _at_rest[chosen.name] = _settle(chosen)
    return _at_rest[chosen.name]


def _settle(chosen: Family) -> AnomalyModel:
    torch.manual_seed(0)
    model = chosen.build().train()
    with torch.no_grad():
        for seed in range(5):
            model(_batch(chosen, 8, seed))
    return model.eval()


_ready: dict[str, AnomalyModel] = {}


def _trained(chosen: Family) -> AnomalyModel:
    """A model after a few steps and its own finish, in evaluation mode; made once, not to be changed."""
    if chosen.name not in _ready:
        _ready[chosen.name] = _train(chosen)
    return _ready[chosen.name]


def _train(chosen: Family) -> AnomalyModel:
    torch.manual_seed(0)
    model = chosen.build().train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 2e-3)
    for step in range(STEPS):
        optimizer.zero_grad()
        model.loss(_labelled(model, chosen, _smooth(chosen, 8, step)))["loss"].backward()
        optimizer.step()
    model.eval().finish([_smooth(chosen, 8, 100)], [_smooth(chosen, 8, 200)], lambda _: None)
    if model.supervised:
        model.fit_probability(
            [_labelled(model, chosen, _smooth(chosen, 8, seed)) for seed in (200, 201)], lambda _: None
        )
    return model.eval()


def test_outputs_have_their_names_and_shapes(chosen: Family) -> None:
    model = _settled(chosen)
    x = _batch(chosen)
    with torch.no_grad():
        found = model(x)
    assert tuple(found) == model.outputs
    assert model.outputs[0] == "score"
    assert set(model.deviations) <= set(model.outputs)
    assert found["score"].shape == (4,)
    assert found["heatmap"].shape == (4, 1, *x.shape[2:])
    assert all(torch.isfinite(v).all() for v in found.values())


def test_every_trained_parameter_gets_a_gradient(chosen: Family) -> None:
    torch.manual_seed(0)
    model = chosen.build().train()
    terms = model.loss(_labelled(model, chosen, _batch(chosen, 8)))
    assert terms["loss"].ndim == 0
    terms["loss"].backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    for name, parameter in trained.items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
        assert torch.isfinite(parameter.grad).all(), name


def test_a_few_steps_lower_the_loss(chosen: Family) -> None:
    torch.manual_seed(0)
    model = chosen.build().train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-3)
    batch = _labelled(model, chosen, _smooth(chosen, 8, 0))
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = model.loss(batch)["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


def test_scores_are_the_same_each_time_and_do_not_depend_on_the_neighbours(chosen: Family) -> None:
    model, x = _settled(chosen), _batch(chosen, 5)
    with torch.no_grad():
        together, again = model(x)["score"], model(x)["score"]
        alone = torch.cat([model(x[i : i + 1])["score"] for i in range(5)])
    assert torch.equal(together, again)
    assert torch.allclose(together, alone, rtol=1e-4, atol=1e-6)


def test_a_stronger_defect_scores_higher(chosen: Family) -> None:
    model, x = _trained(chosen), _smooth(chosen, 8, 300)
    with torch.no_grad():
        means = [model(_with_defect(chosen, x, strength))["score"].mean().item() for strength in (0.0, 0.5, 1.0)]
    assert all(weaker < stronger for weaker, stronger in pairwise(means)), means


def test_a_probability_lies_in_0_to_1_and_orders_items_as_the_score_does(chosen: Family) -> None:
    model = _trained(chosen)
    if "probability" not in model.outputs:
        return
    x = _smooth(chosen, 8, 500)
    with torch.no_grad():
        found = model(torch.cat([x, _with_defect(chosen, x, 1.0)]))
    assert (found["probability"] >= 0).all()
    assert (found["probability"] <= 1).all()
    by_score = found["probability"][found["score"].argsort()]
    assert (by_score.diff() >= 0).all()


def test_synthetic_faults_lie_where_their_mask_says(chosen: Family) -> None:
    model, x = _settled(chosen), _smooth(chosen, 8, 600)
    made = model.with_faults(x, 1)
    if made is None:
        return
    again, other = model.with_faults(x, 1), model.with_faults(x, 2)
    assert again is not None
    assert other is not None
    assert torch.equal(made.x, again.x)
    assert not torch.equal(made.x, other.x)
    assert made.mask.shape == (8, 1, *x.shape[2:])
    assert made.severity.shape == (8,)
    assert torch.equal(torch.where(made.mask > 0, x, made.x), x)
    assert torch.equal(made.severity > 0, made.mask.flatten(1).amax(dim=1) > 0)
    assert set(made.mask.unique().tolist()) <= {0.0, 1.0}


def test_a_finished_model_survives_saving(chosen: Family, tmp_path: Path) -> None:
    model = _trained(chosen)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    other = chosen.build().eval()
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    x = _smooth(chosen, 4, 400)
    with torch.no_grad():
        assert torch.equal(model(x)["score"], other(x)["score"])


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Family], Graphs]:
    """``graphs(chosen)``: those of the trained model, each made once; not to be changed."""
    made: dict[str, Graphs] = {}

    def of(chosen: Family) -> Graphs:
        if chosen.name not in made:
            x = _smooth(chosen, 4, 700)
            samples = torch.cat([x, _with_defect(chosen, x, 1.0)]).numpy()
            folder = tmp_path_factory.mktemp("graphs")
            made[chosen.name] = Graphs(_trained(chosen), chosen.shape(chosen.prep), samples, folder)
        return made[chosen.name]

    return of


def _skip_what_is_lacking(variant: str) -> None:
    if reason := lacking(variant):
        pytest.skip(reason)


@pytest.mark.parametrize("variant", EXACT)
def test_exports_answer_as_the_model_does(chosen: Family, variant: str, graphs: Callable[[Family], Graphs]) -> None:
    _skip_what_is_lacking(variant)
    model, runtime = _trained(chosen), graphs(chosen).open(variant)
    x, trained = _batch(chosen, 7, seed=9).numpy(), EagerRuntime(model)
    expected = trained.run(x, model.outputs)
    check_parity(variant, runtime, trained, x, model.outputs, [float(np.median(expected["score"]))])
    for batch in (1, 2, 7):
        found = runtime.run(x[:batch], model.outputs)
        assert {name: v.shape for name, v in found.items()} == {n: expected[n][:batch].shape for n in model.outputs}
    for name, values in expected.items():
        if np.issubdtype(values.dtype, np.integer):
            assert len(np.unique(values)) > 1, f"{name} never differs: its parity proves nothing"


@pytest.mark.filterwarnings("ignore:`torch.jit.load`:FutureWarning")
def test_torchscript_keeps_nothing_on_the_processor_that_it_was_traced_on(
    chosen: Family, graphs: Callable[[Family], Graphs]
) -> None:
    graph = torch.jit.load(graphs(chosen).file("torchscript")).inlined_graph  # type: ignore[no-untyped-call]
    assert 'value="cpu"' not in str(graph)


def _tries(made: Graphs, variant: str) -> Iterator[Runtime]:
    """Yield a variant, in int8 as an export searches for it: with ever fewer layers.

    Of draem's whole graph OpenVINO (2026.4) gives other numbers than onnxruntime.
    """
    runtime, _, precision = variant.partition("/")
    file = graph_of(variant)
    for choice in made.quantizer.choices(runtime) if "int8" in precision else [None]:
        if choice is not None:
            made.choices = {file: choice}
            made.make_anew(file)
        try:
            yield made.open(variant)
        except MedadError as error:
            if "bfloat16" in error.message:
                pytest.skip(error.message)
            raise


@pytest.mark.parametrize("variant", REDUCED)
def test_scores_in_a_reduced_precision_follow_those_of_the_model(
    chosen: Family, variant: str, graphs: Callable[[Family], Graphs]
) -> None:
    _skip_what_is_lacking(variant)
    model, made = _trained(chosen), graphs(chosen)
    x = _smooth(chosen, 8, 800)
    both = torch.cat([x, _with_defect(chosen, x, 1.0)]).numpy()
    expected = EagerRuntime(model).run(both, model.outputs)
    for runtime in _tries(made, variant):
        found = runtime.run(both, model.outputs)
        if np.corrcoef(found["score"], expected["score"])[0, 1] > 0.9:
            break
    assert {n: (v.shape, v.dtype) for n, v in found.items()} == {n: (v.shape, v.dtype) for n, v in expected.items()}
    assert np.corrcoef(found["score"], expected["score"])[0, 1] > 0.9
    assert not np.array_equal(found["score"], expected["score"]), "it computes in float32"


def test_the_model_is_one_graph_for_torch_compile(chosen: Family) -> None:
    torch.compiler.reset()  # what was traced of other models counts against a limit
    model = _trained(chosen)
    x = _smooth(chosen, 2, 801)
    with torch.inference_mode():
        found = torch.compile(model, fullgraph=True, dynamic=False, backend="eager")(x)
        expected = model(x)
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[name].float(), expected[name].float(), atol=1e-5) for name in expected)


def test_onnx_files_are_self_contained_with_a_dynamic_batch(chosen: Family, graphs: Callable[[Family], Graphs]) -> None:
    for variant in ("onnx", "onnx/float16", "onnx/int8"):
        graph = onnx.load(graphs(chosen).file(variant), load_external_data=False).graph
        assert graph.input[0].type.tensor_type.shape.dim[0].dim_param
        assert not any(t.external_data for t in graph.initializer)


def test_default_settings_are_accepted_and_unknown_ones_named(family: Family) -> None:
    assert count_parameters(family.build()) > 0
    validated(family.settings, {}, "settings")
    with pytest.raises(Exception, match="no_such_setting"):
        validated(family.settings, {"no_such_setting": 1}, "settings")


def test_prepared_phantoms_have_the_models_shape(family: Family, tmp_path: Path) -> None:
    phantom = PHANTOMS[family.phantom]
    phantom.write(tmp_path / "data", healthy=2, abnormal=1, slices=1, seed=0)
    table = read_table(f"{phantom.layout}:{tmp_path / 'data'}")
    made = load_prepared(table, family.prep, family.input, root=tmp_path / "cache")
    assert made.tensor.shape[1:] == family.shape(family.prep)
    assert made.labels.sum() == 1
    assert not made.faults
    low, high = family.prep.values
    assert low <= made.tensor.min() < made.tensor.max() <= high
