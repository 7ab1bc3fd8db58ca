from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from medad_serve.errors import MedadError
from medad_serve.models import AnomalyModel, family
from medad_serve.models.transfer import Transfer, load_fitting


class Network(nn.Module):
    """Three convolutions and a head, for ``channels`` and ``classes``."""

    def __init__(self, channels: int = 1, classes: int = 1, width: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3)
        self.blocks = nn.Sequential(nn.Conv2d(width, width, 3), nn.BatchNorm2d(width), nn.Conv2d(width, width, 1))
        self.head = nn.Linear(width, classes)


class Wrapped(nn.Module):
    """The network as a part, beside values of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Network()
        self.register_buffer("share", torch.tensor(0.5))


def _loaded(model: nn.Module, weights: dict[str, torch.Tensor]) -> tuple[Transfer, dict[str, torch.Tensor]]:
    found = load_fitting(model, weights)
    return found, model.state_dict()


@pytest.fixture(scope="module")
def imagenets() -> nn.Module:
    """A B0 as the hub keeps it: three colours, a thousand classes; its weights are drawn, not learned."""
    torch.manual_seed(1)
    return timm.create_model("efficientnet_b0").eval()


def _ours() -> AnomalyModel:
    torch.manual_seed(2)
    return family("efficientnet_b0").build().eval()


def test_all_of_an_equal_network_is_taken() -> None:
    there = Network()
    found, state = _loaded(Network(), there.state_dict())
    assert len(found.loaded) == found.of == 12
    assert (found.summed, found.reshaped, found.missing, found.unused) == ((), (), (), ())
    assert all(torch.equal(value, state[name]) for name, value in there.state_dict().items())


@pytest.mark.parametrize("prefix", ["", "module.", "model.network.", "backbone."])
def test_names_may_stand_below_a_prefix_on_either_side(prefix: str) -> None:
    there = Network()
    found, state = _loaded(Wrapped(), {prefix + name: value for name, value in there.state_dict().items()})
    assert len(found.loaded) == 12
    assert (found.reshaped, found.unused) == ((), ())
    assert torch.equal(state["network.blocks.2.weight"], there.state_dict()["blocks.2.weight"])
    assert state["share"] == 0.5


def test_the_head_of_other_classes_stays_and_is_told() -> None:
    model = Network()
    before = model.head.weight.detach().clone()
    found, state = _loaded(model, Network(classes=5).state_dict())
    assert torch.equal(state["head.weight"], before)
    assert found.reshaped == ("head.weight 5x4 in the file, 1x4 here", "head.bias 5 in the file, 1 here")
    assert len(found.loaded) == 10


def test_what_is_missing_and_what_is_unused_is_named() -> None:
    weights = Network().state_dict()
    del weights["blocks.2.bias"]
    found, _ = _loaded(Network(), {**weights, "extra.weight": torch.zeros(3)})
    assert found.missing == ("blocks.2.bias",)
    assert found.unused == ("extra.weight",)
    said = list(found.lines())
    assert said[0] == "loaded 11 of 12 tensors"
    assert any("not in the file" in line and "blocks.2.bias" in line for line in said)
    assert any("without a place" in line and "extra.weight" in line for line in said)


def test_a_line_names_a_few_and_counts_the_rest() -> None:
    lines = list(Transfer(("a",), 9, (), (), tuple("bcdefghi"), ()).lines())
    assert lines[1] == "not in the file, kept as they were (8): b, c, d, e and 4 more"


@torch.no_grad()
@pytest.mark.parametrize("channels", [1, 2])
def test_a_stem_of_three_colours_answers_a_gray_image_as_before(channels: int) -> None:
    there, here = Network(channels=3), Network(channels=channels)
    found, _ = _loaded(here, there.state_dict())
    assert found.summed == ("stem.weight",)
    gray = torch.randn(2, 1, 9, 9)
    expected = there.stem(gray.expand(-1, 3, -1, -1))
    assert torch.allclose(here.stem(gray.expand(-1, channels, -1, -1)), expected, atol=1e-5)


@torch.no_grad()
def test_a_whole_b0_sees_a_gray_film_as_it_saw_it_in_three_channels(imagenets: nn.Module) -> None:
    model = _ours()
    found = model.start_partly(imagenets.state_dict())
    assert found.summed == ("network.conv_stem.weight",)
    assert {line.split(" ")[0] for line in found.reshaped} == {"network.classifier.weight", "network.classifier.bias"}
    assert len(found.loaded) == found.of - 2
    assert not found.missing
    assert not found.unused
    gray = torch.randn(2, 1, 64, 64)
    expected = imagenets.forward_features(gray.expand(-1, 3, -1, -1))
    assert torch.allclose(model.network.forward_features(gray), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b1", "efficientnet_b2", "mobilenetv3_small_100"])
def test_another_architecture_is_refused_with_its_counts_and_changes_nothing(name: str) -> None:
    model = _ours()
    before = {n: v.clone() for n, v in model.state_dict().items()}
    other = timm.create_model(name, num_classes=2, in_chans=1)
    with pytest.raises(MedadError, match=r"another architecture: \d+ of their \d+ tensors fit \d+ of this model"):
        model.start_partly(other.state_dict())
    assert all(torch.equal(value, before[n]) for n, value in model.state_dict().items())


def test_nothing_at_all_is_refused() -> None:
    with pytest.raises(MedadError, match="0 of their 0"):
        load_fitting(Network(), {})


def test_a_run_of_the_same_model_fits_whole() -> None:
    first, second = _ours(), _ours()
    found = second.start_partly({f"model.{n}": v for n, v in first.state_dict().items()})
    assert len(found.loaded) == found.of
    assert not found.missing
