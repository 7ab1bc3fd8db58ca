from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from medad_serve.errors import MedadError
from medad_serve.export.graph import EagerRuntime
from medad_serve.export.onnx import export_onnx
from medad_serve.export.torchscript import export_torchscript
from medad_serve.models import Batch, count_parameters, family
from medad_serve.models.vqvae import SCORES, Vqvae, VqvaeSettings
from medad_serve.runtime import OnnxRuntime, Runtime, TorchScriptRuntime
from medad_serve.spec import PrepSpec

SMALL = {
    "n_hiddens": 12,
    "n_residual_hiddens": 6,
    "n_residual_layers": 1,
    "embedding_dim": 5,
    "n_embeddings": 9,
    "prior_layers": 2,
    "prior_width": 8,
    "prior_epochs": 3,
}


def _images(n: int, seed: int, size: tuple[int, int] = (24, 32)) -> torch.Tensor:
    """Stripes of a random phase and contrast: ``(n, 1, H, W)`` in 0..1."""
    rng = np.random.default_rng(seed)
    rows = np.arange(size[0])[:, None] / 3
    waves = np.sin(rows + rng.uniform(0, 6, (n, 1, 1))) * rng.uniform(0.2, 0.5, (n, 1, 1))
    noise = rng.normal(0, 0.02, (n, *size))
    return torch.from_numpy((0.5 + waves + noise).clip(0, 1)).float()[:, None]


def _model(**settings: object) -> Vqvae:
    """A model whose codebook has moved, in evaluation mode."""
    torch.manual_seed(0)
    model = Vqvae((1, 24, 32), VqvaeSettings(**(SMALL | settings))).train()
    with torch.no_grad():
        for seed in range(3):
            model.loss(Batch.of(_images(8, seed)))
    return model.eval()


def _finish(model: Vqvae) -> list[dict[str, float]]:
    log: list[dict[str, float]] = []
    model.finish([_images(8, 1), _images(8, 2)], [_images(6, 3), _images(5, 4)], log.append)
    return log


def test_the_sources_network_has_the_parameters_its_shapes_say() -> None:
    n, residual, dim = 256, 64, 256
    stack = 4 * (n * residual * 9 + residual * n)
    encoder = (n // 2 * 16 + n // 2) + (n // 2 * n * 16 + n) + (n * n * 9 + n) + stack + (n * dim + dim)
    decoder = (dim * n * 9 + n) + stack + (n * n // 2 * 16 + n // 2) + (n // 2 * 16 + 1)
    assert count_parameters(family("vqvae").build()) == encoder + decoder
    assert count_parameters(family("vqvae").build(settings={"codebook": "gradient"})) == encoder + decoder + 128 * dim


@pytest.mark.parametrize("halvings", [1, 2, 3])
def test_a_code_stands_for_a_square_of_pixels(halvings: int) -> None:
    model = Vqvae((1, 24, 32), VqvaeSettings(**SMALL, n_downsamplings=halvings)).eval()
    found = model(_images(2, 0))
    assert found["codes"].shape == (2, 24 // 2**halvings, 32 // 2**halvings)
    assert found["codes"].dtype == torch.int64
    assert found["reconstruction"].shape == (2, 1, 24, 32)


def test_a_size_that_does_not_divide_is_refused() -> None:
    with pytest.raises(MedadError, match="100x128 does not divide by 8"):
        family("vqvae").build(PrepSpec(size=(100, 128)), SMALL | {"n_downsamplings": 3})


@pytest.mark.parametrize("scores", [(), ("nll", "nll"), ("mse",)])
def test_scores_must_be_known_and_named_once(scores: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError, match="scores"):
        VqvaeSettings(scores=scores)


def test_codes_decode_to_the_reconstruction() -> None:
    model, x = _model(), _images(3, 9)
    with torch.no_grad():
        found = model(x)
        assert torch.equal(model.decode(found["codes"]), found["reconstruction"])


def test_the_alignment_map_is_the_distance_of_encoder_output_and_code() -> None:
    model, x = _model(), _images(3, 9)
    with torch.no_grad():
        found, z = model(x), model.encoder(x).numpy().astype(np.float64)
    codebook = model.quantizer.codebook.numpy().astype(np.float64)
    expected = np.zeros((3, 24, 32))
    for item, row, column in np.ndindex(3, 6, 8):
        square = np.square(z[item, :, row, column] - codebook[found["codes"][item, row, column]]).mean()
        expected[item, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = square
    assert np.allclose(found["alignment"][:, 0], expected, rtol=1e-4)
    assert np.allclose(found["score_alignment"], expected.mean(axis=(1, 2)), rtol=1e-4)


def test_the_other_components_are_squared_error_and_likelihood() -> None:
    model, x = _model(), _images(3, 9)
    with torch.no_grad():
        found = model(x)
        nll = model.prior.nll(found["codes"])
    error = (x - found["reconstruction"]).square()
    assert torch.allclose(found["score_reconstruction"], error.mean(dim=(1, 2, 3)))
    assert torch.allclose(found["score_nll"], nll.mean(dim=(1, 2)))


def test_before_finish_scores_are_raw_and_leave_out_the_untrained_prior() -> None:
    x = _images(3, 9)
    with torch.no_grad():
        found = _model()(x)
        likelihood = _model(scores=("nll",))(x)
    assert torch.allclose(found["score"], (found["score_reconstruction"] + found["score_alignment"]) / 2)
    assert torch.allclose(likelihood["score"], likelihood["score_nll"])


def _deviation(values: torch.Tensor) -> torch.Tensor:
    """Return the deviation of normals, a hundredth of their mean at least."""
    return torch.maximum(values.std(correction=0), values.mean().abs() / 100)


def test_finish_gives_held_out_normals_mean_0_and_deviation_1_at_most() -> None:
    spread = []
    for name in SCORES:
        model = _model(scores=(name,))
        _finish(model)
        with torch.no_grad():
            found = [model(_images(6, 3)), model(_images(5, 4))]
        scores, raw = (torch.cat([each[key] for each in found]) for key in ("score", f"score_{name}"))
        spread.append(scores.std(correction=0).item())
        assert scores.mean().item() == pytest.approx(0, abs=1e-4), name
        assert spread[-1] == pytest.approx((raw.std(correction=0) / _deviation(raw)).item(), rel=1e-3), name
    assert spread[:2] == pytest.approx([1, 1], rel=1e-3)
    assert spread[2] < 1, "the prior knows nothing: all its likelihoods are alike"


def test_the_score_is_the_mean_of_the_chosen_z_scores_and_the_heatmap_of_the_chosen_z_maps() -> None:
    model = _model(scores=("nll", "reconstruction"))
    _finish(model)
    x = _images(4, 9)
    with torch.no_grad():
        found = model(x)
        held_out = {name: torch.cat([model(_images(6, 3))[name], model(_images(5, 4))[name]]) for name in model.outputs}
        nll = [model.prior.nll(f["codes"]).repeat_interleave(4, 1).repeat_interleave(4, 2) for f in (found, held_out)]
    expected = torch.zeros(4)
    for name in ("score_nll", "score_reconstruction"):
        expected += (found[name] - held_out[name].mean()) / _deviation(held_out[name]) / 2
    assert torch.allclose(found["score"], expected, atol=1e-3)
    normal = (torch.cat([_images(6, 3), _images(5, 4)]) - held_out["reconstruction"]).square()[:, 0]
    error = (x - found["reconstruction"]).square()[:, 0]
    maps = (nll[0] - nll[1].mean()) / _deviation(nll[1]) + (error - normal.mean()) / _deviation(normal)
    assert torch.allclose(found["heatmap"][:, 0], (maps / 2).clamp(min=0), atol=1e-2)


def test_a_share_below_one_averages_the_highest_values() -> None:
    model, x = _model(score_share=0.1), _images(3, 9)
    with torch.no_grad():
        found = model(x)
    error = (x - found["reconstruction"]).square().numpy().reshape(3, -1)
    assert np.allclose(found["score_reconstruction"], np.sort(error)[:, -77:].mean(axis=1), rtol=1e-5)


def test_finish_is_the_same_each_time_and_logs_what_it_found() -> None:
    first, second = _model(), _model()
    rows, again = _finish(first), _finish(second)
    assert rows == again
    assert [row["prior_epoch"] for row in rows[:-1]] == [1, 2, 3]
    assert rows[-1]["nll_mean"] == pytest.approx(min(row["prior_held_out_nll"] for row in rows[:-1]), rel=1e-4)
    assert all(torch.equal(v, second.state_dict()[k]) for k, v in first.state_dict().items())


def test_finish_without_held_out_normals_is_refused() -> None:
    with pytest.raises(MedadError, match="no normal images"):
        _model().finish([_images(4, 0)], [], lambda _: None)


def test_one_held_out_image_leaves_scores_finite() -> None:
    model = _model()
    model.finish([_images(4, 0)], [_images(1, 1)], lambda _: None)
    assert torch.isfinite(model(_images(2, 2))["score"]).all()


def test_the_prior_learns_from_as_many_variants_as_asked_for() -> None:
    class Varied:
        read = 0

        def __iter__(self) -> Iterator[torch.Tensor]:
            self.read += 1
            yield _images(4, self.read)

    varied = Varied()
    _model(prior_passes=3).finish(varied, [_images(4, 0)], lambda _: None)
    assert varied.read == 3


def test_the_prior_learns_in_finish_alone() -> None:
    model = _model().train()
    before = {name: value.clone() for name, value in model.prior.state_dict().items()}
    model.loss(Batch.of(_images(8, 5)))["loss"].backward()
    assert all(p.grad is None for p in model.prior.parameters())
    _finish(model.eval())
    assert any(not torch.equal(value, before[name]) for name, value in model.prior.state_dict().items())


def test_loss_is_the_reconstruction_and_the_commitment() -> None:
    model, x = _model(beta=0.5), _images(4, 7)
    with torch.no_grad():
        terms, found = model.loss(Batch.of(x)), model(x)
    assert set(terms) == {"loss", "recon_loss", "vq_loss", "perplexity", "codebook_usage"}
    assert terms["recon_loss"].item() == pytest.approx(found["score_reconstruction"].mean().item(), rel=1e-5)
    assert terms["vq_loss"].item() == pytest.approx(0.5 * found["score_alignment"].mean().item(), rel=1e-5)
    assert terms["loss"].item() == pytest.approx((terms["recon_loss"] + terms["vq_loss"]).item())
    assert terms["codebook_usage"].item() == pytest.approx(len(found["codes"].unique()) / 9)


def test_ties_have_the_shape_of_the_codes_and_lie_in_0_to_1() -> None:
    model, x = _model(), _images(3, 9)
    ties = model.ties(x)["codes"]
    assert ties.shape == model(x)["codes"].shape
    assert ties.min() >= 0
    assert ties.max() <= 1


@pytest.mark.parametrize("kind", [pytest.param("onnx", marks=pytest.mark.slow), "torchscript"])
def test_exports_pool_and_scale_as_the_finished_model(kind: str, tmp_path: Path) -> None:
    model = _model(score_share=0.1)
    _finish(model)
    runtime: Runtime
    if kind == "onnx":
        export_onnx(model, (1, 24, 32), tmp_path / "m")
        runtime = OnnxRuntime(tmp_path / "m")
    else:
        export_torchscript(model, (1, 24, 32), tmp_path / "m")
        runtime = TorchScriptRuntime(tmp_path / "m", model.outputs)
    x = _images(7, 9).numpy()
    found, expected = runtime.run(x, model.outputs), EagerRuntime(model).run(x, model.outputs)
    assert np.array_equal(found["codes"], expected["codes"])
    for name in model.outputs:
        assert np.allclose(found[name], expected[name], rtol=1e-4, atol=1e-4), name
