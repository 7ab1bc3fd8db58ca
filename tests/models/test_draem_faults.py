from __future__ import annotations

import math
import time
from itertools import pairwise
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from medad_serve.models import Batch, family
from medad_serve.models.draem import Draem, FaultGenerator, FaultSettings, SyntheticFaults
from medad_serve.models.draem.draws import Draws
from medad_serve.models.draem.perlin import LATTICE, Regions, draw_regions, perlin, perlin_noise
from medad_serve.models.draem.settings import RatioRanges

KINDS = ("cut_paste", "perlin", "mixed")


def _generator(kind: str = "cut_paste", size: int = 32, **changes: Any) -> FaultGenerator:
    ratios = RatioRanges(landscape=(1.0, 2.0), portrait=(0.5, 1.0))
    small = {"patch_width_range": (4, 12), "patch_ratio_range": ratios}
    return FaultGenerator(FaultSettings(kind=kind, **{**small, **changes}), (size, size))


def _images(n: int, size: int = 32) -> Tensor:
    return torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(1))


def _made(kind: str, n: int, seed: int = 0, **changes: Any) -> SyntheticFaults:
    return _generator(kind, **changes)(_images(n), Draws(n, torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("probability", [0.0, 0.3, 0.5, 0.8, 1.0])
def test_the_share_of_faulty_images_is_the_one_asked_for(kind: str, probability: float) -> None:
    made = _made(kind, 2000, probability=probability)
    faulty = made.fault_mask.flatten(1).any(dim=1)
    assert faulty.float().mean().item() == pytest.approx(probability, abs=0.035)
    assert torch.equal(faulty, made.severity_label > 0)


@pytest.mark.parametrize("kind", KINDS)
def test_labels_maps_and_masks_agree(kind: str) -> None:
    made = _made(kind, 200, severity_max=4.0, weakest=0.25)
    faulty = made.severity_label > 0
    assert 1.0 <= made.severity_label[faulty].min() < 1.3
    assert 3.7 < made.severity_label.max() <= 4.0
    assert torch.equal(made.severity_map, made.fault_mask * made.severity_label.view(-1, 1, 1, 1))
    assert set(made.fault_mask.unique().tolist()) == {0.0, 1.0}
    changed = made.synthetic_image != _images(200)
    assert not (changed & (made.fault_mask == 0)).any()
    assert changed[faulty].flatten(1).any(dim=1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_makes_the_same_faults(kind: str) -> None:
    first, again, other = _made(kind, 16), _made(kind, 16), _made(kind, 16, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.synthetic_image, other.synthetic_image)


def test_faults_of_a_row_do_not_depend_on_its_neighbours() -> None:
    generator, x = _generator(probability=1.0), _images(5)
    rows = torch.tensor([3, 17, 4, 900, 0])
    together = generator(x, Draws.of_rows(rows))
    for i in range(5):
        alone = generator(x[i : i + 1], Draws.of_rows(rows[i : i + 1]))
        assert all(torch.equal(a[i : i + 1], b) for a, b in zip(together, alone, strict=True))


def test_a_more_severe_fault_of_the_same_place_changes_more() -> None:
    x = _images(64)
    changes = []
    for weakest in (0.2, 0.6, 1.0):  # the lower end of what is drawn by the same numbers
        generator = _generator(probability=1.0, weakest=weakest)
        made = generator(x, Draws(64, torch.Generator().manual_seed(0)))
        changes.append(((made.synthetic_image - x).abs().mean(dim=(1, 2, 3)), made.severity_label))
    for (less, low), (more, high) in pairwise(changes):
        assert (low < high).all()
        assert (less < more).all()


def test_images_given_are_left_as_they_were() -> None:
    x = _images(8)
    _generator("mixed", probability=1.0)(x, Draws(8))
    assert torch.equal(x, _images(8))


def _reference_noise(angles: np.ndarray[Any, Any], y: float, x: float) -> float:
    """Perlin noise at one place of a lattice of unit gradients, as Perlin (2002) writes it."""
    row, column = math.floor(y), math.floor(x)
    fy, fx = y - row, x - column

    def dot(down: int, across: int) -> float:
        angle = angles[row + down, column + across]
        return float(math.sin(angle) * (fy - down) + math.cos(angle) * (fx - across))

    def ease(t: float) -> float:
        return 6 * t**5 - 15 * t**4 + 10 * t**3

    upper = dot(0, 0) + ease(fx) * (dot(0, 1) - dot(0, 0))
    lower = dot(1, 0) + ease(fx) * (dot(1, 1) - dot(1, 0))
    return math.sqrt(2) * (upper + ease(fy) * (lower - upper))


def test_noise_is_perlins_on_turned_coordinates() -> None:
    regions = draw_regions(Draws(6, torch.Generator().manual_seed(3)))
    noise = perlin_noise(regions, (24, 40))
    for i in range(6):
        turn, (down, across) = float(regions.turn[i]), regions.cells[i].tolist()
        for row, column in ((0, 0), (23, 39), (11, 20), (5, 33)):
            v, u = (row + 0.5) / 24 - 0.5, (column + 0.5) / 40 - 0.5
            y = (v * math.cos(turn) - u * math.sin(turn)) * down + LATTICE / 2
            x = (v * math.sin(turn) + u * math.cos(turn)) * across + LATTICE / 2
            expected = _reference_noise(regions.angles[i].double().numpy(), y, x)
            assert noise[i, row, column].item() == pytest.approx(expected, abs=1e-4)


def _unaltered(n: int) -> Regions:
    regions = draw_regions(Draws(n, torch.Generator().manual_seed(5)))
    return regions._replace(alter=torch.full_like(regions.alter, 0.99))


def test_perlin_regions_blend_the_donor_in_by_their_strength() -> None:
    x, regions = _images(6), _unaltered(6)
    strength = torch.linspace(0.1, 1.0, 6).view(-1, 1, 1, 1)
    made, mask = perlin(x, x[regions.donor], regions, strength.flatten(), FaultSettings(kind="perlin"))
    noise = perlin_noise(regions, (32, 32))[:, None]
    reached = noise.flatten(1).amax(dim=1) > 0.5
    assert reached.any()
    assert torch.equal(mask[reached], (noise > 0.5).to(mask)[reached])
    expected = torch.where(mask > 0, (1 - strength) * x + strength * x[regions.donor], x)
    assert torch.allclose(made, expected, atol=1e-6)


def test_the_donor_is_another_image_of_the_batch() -> None:
    for seed in range(20):
        donors = draw_regions(Draws(7, torch.Generator().manual_seed(seed))).donor
        assert (donors != torch.arange(7)).all()
        assert 0 <= donors.min() <= donors.max() < 7


def test_textures_are_altered_and_stay_in_range() -> None:
    x = _images(40)
    regions = draw_regions(Draws(40, torch.Generator().manual_seed(5)))
    made, mask = perlin(x, x[regions.donor], regions, torch.ones(40), FaultSettings(kind="perlin"))
    plain, _ = perlin(x, x[regions.donor], _unaltered(40), torch.ones(40), FaultSettings(kind="perlin"))
    assert 0 <= made.min() < made.max() <= 1
    differs = ((made != plain) & (mask > 0)).flatten(1).any(dim=1)
    assert differs.float().mean() > 0.8


@pytest.fixture(scope="module")
def step_seconds() -> float:
    """CPU time of a training step of the default model on 8 images, the making of their faults left out."""
    x = _images(8, 256)
    model = cast(Draem, family("draem").build().train())
    made, step = model.generator(x, Draws(8)), math.inf
    model.generator = lambda *_: made  # type: ignore[assignment]
    for _ in range(2):
        start = time.process_time()
        model.loss(Batch.of(x))["loss"].backward()
        step = min(step, time.process_time() - start)
    return step


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_making_faults_costs_little_of_a_training_step(kind: str, step_seconds: float) -> None:
    x, making = _images(8, 256), math.inf
    generator = FaultGenerator(FaultSettings(kind=kind), (256, 256))
    for _ in range(5):
        start = time.process_time()
        generator(x, Draws(8))
        making = min(making, time.process_time() - start)
    assert making < 0.15 * step_seconds
