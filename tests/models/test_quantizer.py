from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from monai.networks.layers.vector_quantizer import EMAQuantizer, VectorQuantizer

from medad_serve.models.quantizer import POSITIONS, Quantizer, Update

UPDATES: tuple[Update, ...] = ("ema", "gradient")


def _trained(update: Update = "ema", codes: int = 12, dim: int = 6, **settings: float) -> Quantizer:
    torch.manual_seed(0)
    quantizer = Quantizer(codes, dim, update=update, **settings).train()
    quantizer(torch.randn(4, dim, 9, 5))
    return quantizer.eval()


def _brute_force(z: np.ndarray, codebook: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return codes ``(N, *S)`` and sorted squared distances ``(N, *S, K)`` in float64."""
    z = np.moveaxis(z.astype(np.float64), 1, -1)
    squared = ((z[..., None, :] - codebook.astype(np.float64)) ** 2).sum(-1)
    return squared.argmin(-1), np.sort(squared, -1)


@pytest.mark.parametrize("space", [(7,), (5, 4), (3, 4, 5)])
def test_each_position_takes_the_nearest_code_in_any_number_of_axes(space: tuple[int, ...]) -> None:
    quantizer = _trained()
    z = torch.randn(3, 6, *space)
    codebook = quantizer.codebook.numpy()
    codes, squared = _brute_force(z.numpy(), codebook)
    found = quantizer(z)
    assert np.array_equal(found.codes, codes)
    assert np.array_equal(found.quantized, np.moveaxis(codebook[codes], -1, 1))
    assert np.allclose(found.distances, squared[..., 0] / 6, rtol=1e-5)
    assert torch.equal(quantizer.lookup(found.codes), found.quantized)


def test_codes_far_from_the_origin_are_still_told_apart() -> None:
    quantizer = _trained()
    quantizer.codebook.add_(1000)
    z = torch.randn(2, 6, 8, 8) + 1000
    assert np.array_equal(quantizer(z).codes, _brute_force(z.numpy(), quantizer.codebook.numpy())[0])


def test_positions_beyond_one_piece_are_quantised_alike() -> None:
    quantizer = _trained()
    z = torch.randn(1, 6, POSITIONS + 77)
    assert np.array_equal(quantizer(z).codes, _brute_force(z.numpy(), quantizer.codebook.numpy())[0])
    assert quantizer.ties(z).shape == (1, POSITIONS + 77)


def test_ties_are_the_relative_gap_between_the_two_nearest() -> None:
    quantizer = _trained()
    z = torch.randn(2, 6, 5, 5)
    nearest = np.sqrt(_brute_force(z.numpy(), quantizer.codebook.numpy())[1])
    assert np.allclose(quantizer.ties(z), 1 - nearest[..., 0] / nearest[..., 1], atol=1e-6)


@pytest.mark.parametrize("update", UPDATES)
def test_loss_and_gradients_are_those_of_the_paper(update: Update) -> None:
    quantizer = _trained(update, commitment_cost=0.3).train()
    quantizer.revive_after = 0
    before = quantizer.codebook.detach().clone()
    z = torch.randn(2, 6, 4, 4, requires_grad=True)
    found = quantizer(z)
    (found.loss + (2 * found.quantized).sum()).backward()
    apart = z.detach() - before[found.codes].movedim(-1, 1)
    both = 1.3 if update == "gradient" else 0.3
    assert found.loss.item() == pytest.approx(both * apart.square().mean().item(), rel=1e-5)
    assert z.grad is not None
    assert torch.allclose(z.grad, 2 + 0.3 * 2 * apart / apart.numel(), atol=1e-6)
    parameters = dict(quantizer.named_parameters())
    assert set(parameters) == ({"codebook"} if update == "gradient" else set())
    if update == "gradient":
        expected = torch.zeros_like(before)
        flat, codes = apart.movedim(1, -1).flatten(0, -2), found.codes.flatten()
        for row, code in zip(flat, codes, strict=True):
            expected[code] -= 2 * row / apart.numel()
        assert torch.allclose(parameters["codebook"].grad, expected, atol=1e-6)


def test_running_means_follow_monai() -> None:
    torch.manual_seed(0)
    ours = Quantizer(10, 6, decay=0.9, revive_after=0).train()
    theirs = EMAQuantizer(2, 10, 6, commitment_cost=0.25, decay=0.9).train()
    theirs.embedding.weight.data.copy_(ours.codebook)
    theirs.ema_w.copy_(ours.codebook)
    theirs.ema_cluster_size.fill_(1)
    wrapped = VectorQuantizer(theirs)
    for _ in range(5):
        z = torch.randn(3, 6, 8, 8)
        found = ours(z)
        loss, quantized = wrapped(z)
        assert torch.allclose(found.quantized, quantized, atol=1e-6)
        assert torch.allclose(found.loss, loss)
        assert torch.allclose(found.perplexity, wrapped.perplexity, rtol=1e-4)
        assert torch.allclose(ours.codebook, theirs.embedding.weight, rtol=1e-4, atol=1e-6)


def test_perplexity_and_usage_count_the_codes_of_the_batch() -> None:
    quantizer = _trained(codes=8)
    codes = torch.tensor([[0, 1, 1, 1]])
    found = quantizer(quantizer.lookup(codes))
    assert torch.equal(found.codes, codes)
    share = np.array([0.25, 0.75])
    assert found.perplexity.item() == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-5)
    assert found.usage.item() == 2 / 8


@pytest.mark.parametrize("update", UPDATES)
def test_a_code_idle_for_too_long_takes_the_place_of_an_encoder_output(update: Update) -> None:
    quantizer = _trained(update, revive_after=3).train()
    far = torch.full((6,), 100.0)
    quantizer.codebook.data[4] = far  # no output lies near
    if update == "ema":
        quantizer.cluster_sum[4] = far * quantizer.cluster_size[4]
    quantizer.idle.zero_()
    for step in range(4):
        assert torch.dist(quantizer.codebook[4], far) < 2, step
        z = torch.randn(2, 6, 8, 8)
        quantizer(z)
    rows = z.movedim(1, -1).flatten(0, -2)
    assert torch.cdist(quantizer.codebook[4:5], rows).min() < 0.1
    assert (quantizer.idle < 3).all()


def test_the_first_batch_seeds_the_whole_codebook() -> None:
    torch.manual_seed(0)
    quantizer = Quantizer(32, 6).train()
    z = torch.randn(4, 6, 8, 8)
    quantizer(z)
    assert quantizer(z).usage > 0.9
    torch.manual_seed(0)
    again = Quantizer(32, 6).train()
    again(torch.randn(4, 6, 8, 8))
    again(z)
    assert torch.equal(again.codebook, quantizer.codebook)


@pytest.mark.parametrize("update", UPDATES)
def test_a_saved_quantiser_goes_on_exactly(update: Update) -> None:
    first = _trained(update).train()
    second = Quantizer(12, 6, update=update).train()
    second.load_state_dict(first.state_dict())
    for seed in range(3):
        z = torch.randn(2, 6, 4, 4, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(first(z).codes, second(z).codes)
        assert torch.equal(first.codebook, second.codebook)


def test_evaluation_moves_nothing() -> None:
    quantizer = _trained()
    before = {k: v.clone() for k, v in quantizer.state_dict().items()}
    quantizer(torch.randn(2, 6, 4, 4))
    assert all(torch.equal(v, before[k]) for k, v in quantizer.state_dict().items())


def test_mixed_precision_does_not_choose_other_codes() -> None:
    quantizer, z = _trained(), torch.randn(2, 6, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        found = quantizer(z)
    assert found.quantized.dtype == torch.float32
    assert torch.equal(found.codes, quantizer(z).codes)


def test_exports_agree_on_codes_and_take_the_lowest_of_equal_ones(tmp_path: Path) -> None:
    quantizer = _trained()
    quantizer.codebook[7] = quantizer.codebook[3]
    z = torch.randn(5, 6, 4, 3)
    z[0, :, 0, 0] = quantizer.codebook[7]
    expected = quantizer(z)
    assert expected.codes[0, 0, 0] == 3
    assert quantizer.ties(z)[0, 0, 0] == 0
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        batch = {"z": {0: torch.export.Dim("batch")}}
        program = torch.onnx.export(quantizer, (z[:2],), dynamo=True, dynamic_shapes=batch, verbose=False)
        traced = torch.jit.freeze(torch.jit.trace(quantizer, z[:2]))
    program.save(str(tmp_path / "q.onnx"))
    graph = onnx.load(tmp_path / "q.onnx").graph
    (argmax,) = (node for node in graph.node if node.op_type == "ArgMax")
    assert not any(a.name == "select_last_index" and a.i for a in argmax.attribute)
    session = onnxruntime.InferenceSession(tmp_path / "q.onnx")
    quantized, codes, distances, *_ = session.run(None, {graph.input[0].name: z.numpy()})
    assert np.array_equal(codes, expected.codes)
    assert np.array_equal(quantized, expected.quantized)
    assert np.allclose(distances, expected.distances, rtol=1e-5)
    assert torch.equal(traced(z)[1], expected.codes)
