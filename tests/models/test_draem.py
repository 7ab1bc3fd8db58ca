from __future__ import annotations

from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn

from medad_serve.errors import MedadError
from medad_serve.export.graph import EagerRuntime
from medad_serve.export.onnx import export_onnx
from medad_serve.export.parity import check_parity
from medad_serve.export.torchscript import export_torchscript
from medad_serve.models import Batch, Family, count_parameters, family
from medad_serve.models.draem import Draem, DraemWithSeverity
from medad_serve.models.draem.draws import Draws
from medad_serve.models.draem.settings import SEVERITY_INPUTS, SeverityInput
from medad_serve.runtime import OnnxRuntime, TorchScriptRuntime
from medad_serve.spec import PrepSpec

CHOSEN: Family = family("draem")
SMALL: dict[str, Any] = CHOSEN.trial_settings
PREP = PrepSpec(size=(64, 64))
MODES = get_args(SeverityInput)


def _model(**changes: Any) -> Draem:
    torch.manual_seed(0)
    faults = {**SMALL["faults"], **changes.pop("faults", {})}
    return cast(Draem, CHOSEN.build(PREP, {**SMALL, **changes, "faults": faults}))


def _settled(**changes: Any) -> Draem:
    """A model whose batch norms have seen images, in evaluation mode."""
    model = _model(**changes).train()
    with torch.no_grad():
        for seed in range(5):
            model(_images(8, seed))
    return model.eval()


def _images(n: int, seed: int = 0) -> Tensor:
    return torch.rand(n, 1, 64, 64, generator=torch.Generator().manual_seed(seed))


class _Given(nn.Module):
    """Answers the same whatever it is given."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, _: Tensor) -> Tensor:
        return self.answer


def test_default_widths_make_the_sources_parameter_count() -> None:
    assert count_parameters(CHOSEN.build()) == pytest.approx(1.89e6, rel=0.02)


def test_published_widths_make_the_published_parameter_count() -> None:
    settings = {"reconstructive_width": 128, "discriminative_width": 64, "severity_head": False}
    with torch.device("meta"):
        model = CHOSEN.build(settings=settings)
    assert count_parameters(model) == pytest.approx(97.42e6, rel=1e-3)


@torch.no_grad()
def test_squares_of_pixels_read_as_one_tell_every_pixel_apart() -> None:
    model, x = _settled(patch=2), _images(2)
    found = model(x)
    assert found["heatmap"].shape == found["reconstruction"].shape == x.shape
    squares = found["heatmap"].unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)
    assert (squares.amax(dim=4) > squares.amin(dim=4)).all()
    assert count_parameters(model) < 1.1 * count_parameters(_model())


@pytest.mark.parametrize(("mode", "channels"), list(zip(MODES, (2, 3, 3, 3, 5), strict=True)))
def test_the_severity_head_sees_what_its_mode_names(mode: str, channels: int) -> None:
    model = _settled(severity_input=mode)
    assert isinstance(model, DraemWithSeverity)
    seen: list[Tensor] = []
    model.severity.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = _images(2)
    with torch.no_grad():
        found = model(x)
    known = {
        "original": x,
        "reconstruction": found["reconstruction"],
        "error_map": (x - found["reconstruction"]).abs(),
    }
    expected = [1 - found["heatmap"], found["heatmap"], *(known[name] for name in SEVERITY_INPUTS[mode])]  # type: ignore[index]
    assert seen[0].shape == (2, channels, 64, 64)
    assert torch.allclose(seen[0], torch.cat(expected, dim=1), atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_trains_every_parameter(mode: str) -> None:
    model = _model(severity_input=mode).train()
    model.loss(Batch.of(_images(8)))["loss"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def _check_export(model: Draem, kind: str, path: Path) -> None:
    export = export_onnx if kind == "onnx" else export_torchscript
    export(model, (1, 64, 64), path)
    runtime = OnnxRuntime(path) if kind == "onnx" else TorchScriptRuntime(path, model.outputs)
    check_parity(kind, runtime, EagerRuntime(model), _images(5, 9).numpy(), model.outputs, [])


def _variants() -> list[dict[str, Any]]:
    """Every mode but the default, which the conformance suite exports; in two of them the other choices too."""
    default = _model().settings.severity_input
    first, second, *others = ({"severity_input": mode} for mode in MODES if mode != default)
    return [{**first, "score": "top"}, {**second, "patch": 2}, *others]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "torchscript"])
@pytest.mark.parametrize("changes", _variants(), ids=str)
def test_every_variant_exports(changes: dict[str, Any], kind: str, tmp_path: Path) -> None:
    _check_export(_settled(**changes), kind, tmp_path / "model")


@pytest.mark.parametrize("kind", ["onnx", "torchscript"])
def test_without_its_head_it_is_plain_draem(kind: str, tmp_path: Path) -> None:
    model = _settled(severity_head=False, faults={"kind": "perlin"})
    assert model.outputs == ("score", "heatmap", "reconstruction")
    assert not any(name.startswith("severity") for name in (*model.state_dict(), *model.loss(Batch.of(_images(4)))))
    _check_export(model, kind, tmp_path / "model")


def test_severity_lies_between_0_and_the_highest() -> None:
    model = _settled(faults={"severity_max": 4.0})
    assert isinstance(model, DraemWithSeverity)
    last = model.severity.regressor[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        for bias, expected in ((-50.0, 0.0), (0.0, 2.0), (50.0, 4.0)):
            last.weight.zero_()
            last.bias.fill_(bias)
            assert torch.allclose(model(_images(3))["severity"], torch.full((3,), expected), atol=1e-5)


def _heatmap(seed: int = 0) -> Tensor:
    return torch.rand(3, 1, 64, 64, generator=torch.Generator().manual_seed(seed))


def _with_heatmap(heatmap: Tensor, **changes: Any) -> Draem:
    model = _settled(**changes)
    model.discriminative = _Given(torch.cat((1 - heatmap, heatmap), dim=1).log())  # type: ignore[assignment]
    return model


@torch.no_grad()
def test_window_score_is_the_highest_mean_in_a_square() -> None:
    heatmap = _heatmap()
    found = _with_heatmap(heatmap, score_window=9)(_images(3))
    means = [ndimage.uniform_filter(h[0].numpy(), 9, mode="constant").max() for h in heatmap]
    assert torch.allclose(found["heatmap"], heatmap, atol=1e-6)
    assert found["score"].tolist() == pytest.approx(means, rel=1e-4)


@torch.no_grad()
def test_top_score_is_the_mean_of_the_highest_values() -> None:
    heatmap = _heatmap()
    found = _with_heatmap(heatmap, score="top", score_top=0.01)(_images(3))
    expected = [np.sort(h.numpy().ravel())[-41:].mean() for h in heatmap]
    assert found["score"].tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("severity_loss", ["mse", "smooth_l1"])
def test_the_loss_weighs_its_terms_as_asked(severity_loss: str) -> None:
    model = _settled(weights={"reconstruction": 0.8, "segmentation": 1.5, "severity": 0.3}, severity_loss=severity_loss)
    terms = model.loss(Batch.of(_images(4)))
    expected = (
        0.8 * (terms["l2_loss"] + terms["ssim_loss"]) + 1.5 * terms["segmentation_loss"] + 0.3 * terms["severity_loss"]
    )
    assert terms["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


@torch.no_grad()
def test_severities_are_compared_as_shares_of_the_highest() -> None:
    model = _settled(faults={"severity_max": 4.0})
    assert isinstance(model, DraemWithSeverity)
    batch = Batch.of(_images(6))
    truth = model.generator(batch.x, Draws.of_rows(batch.rows)).severity_label
    model.severity = _Given(torch.full((6,), 0.25))  # type: ignore[assignment]
    terms = model.loss(batch)
    assert 0 < (truth > 0).sum() < 6
    assert terms["severity_mae"].item() == pytest.approx((truth - 1.0).abs().mean().item(), rel=1e-5)
    assert terms["severity_loss"].item() == pytest.approx((truth / 4 - 0.25).square().mean().item(), rel=1e-5)


@torch.no_grad()
def test_evaluation_repeats_its_faults_whatever_was_drawn_before() -> None:
    model = _settled(faults={"kind": "cut_paste"})
    batch = Batch.of(_images(6))
    first = model.loss(batch)
    torch.rand(7)
    again = model.loss(batch)
    turned = model.loss(Batch(*(part.flip(0) for part in batch)))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert turned["loss"].item() == pytest.approx(first["loss"].item(), rel=1e-5)


@torch.no_grad()
def test_training_draws_other_faults_each_time() -> None:
    model, seen = _model().train(), []
    model.reconstructive.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for _ in range(2):
        model.loss(Batch.of(_images(6)))
    assert not torch.equal(seen[0], seen[1])


def test_graded_faults_are_of_every_item_and_repeat() -> None:
    model, x = _model(faults={"probability": 0.2}), _images(12)
    found, again, other = model.with_faults(x, 3), model.with_faults(x, 3), model.with_faults(x, 4)
    assert found.mask.flatten(1).any(dim=1).all()
    assert found.severity.min() >= 1
    assert found.severity.max() <= 10
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    assert not torch.equal(found.x, other.x)


@pytest.mark.parametrize(
    ("prep", "settings", "said"),
    [
        (PrepSpec(size=(80, 64)), SMALL, "80x64 does not divide by 32"),
        (PrepSpec(size=(96, 64)), {**SMALL, "patch": 2}, "96x64 does not divide by 64"),
        (PREP, {**SMALL, "score_window": 65}, "score window of 65 is larger"),
        (PREP, {**SMALL, "score_window": 4}, "odd"),
        (PREP, {**SMALL, "faults": {}}, "larger than the image"),
        (PREP, {**SMALL, "faults": {"probability": 2}}, "faults.probability"),
        (PREP, {**SMALL, "severity_input": "all"}, "severity_input"),
        (PREP, {**SMALL, "severity_widths": (0, 1, 1)}, "severity_widths"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(prep: PrepSpec, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(MedadError, match=said) as caught:
        CHOSEN.build(prep, settings)
    assert "\n" not in str(caught.value)
