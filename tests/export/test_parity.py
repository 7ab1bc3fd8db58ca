from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from medad_serve.errors import MedadError
from medad_serve.export.graph import EagerRuntime
from medad_serve.export.parity import check_parity
from medad_serve.models import AnomalyModel, Batch

OUTPUTS = ("score", "heatmap", "codes")


class Coded(AnomalyModel):
    """Codes are the rounded pixels: half-way values tie."""

    outputs = OUTPUTS

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"score": x.mean(dim=(1, 2, 3)) * self.scale, "heatmap": x, "codes": torch.floor(x[:, 0]).long()}

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        return {"loss": self(batch.x)["score"].mean()}

    def ties(self, x: Tensor) -> dict[str, Tensor]:
        return {"codes": (x[:, 0] - x[:, 0].round()).abs()}


class Altered:
    """The trained model, with one code and the pixel behind it changed."""

    def __init__(self, heatmap: float = 0.0, code: int = 0, score: float = 0.0) -> None:
        self.trained = EagerRuntime(Coded())
        self.heatmap, self.code, self.score = heatmap, code, score

    def run(self, batch: np.ndarray, names: tuple[str, ...]) -> dict[str, np.ndarray]:
        found = self.trained.run(batch, names)
        for item in np.flatnonzero(batch[:, 0, 0, 0] == 5):  # the marked one, wherever it stands in the batch
            found["heatmap"][item, 0, 1, 1] += self.heatmap
            found["codes"][item, 0, 0] += self.code
            found["score"][item] += self.score
        return found


@pytest.fixture
def inputs() -> np.ndarray:
    values = np.random.default_rng(0).uniform(1.2, 1.8, (9, 1, 4, 4)).astype(np.float32)
    values[3, 0, 0, 0] = 5  # exactly between two codes
    return values


def _check(runtime: Altered, inputs: np.ndarray, cutoff: float = 1.0):
    return check_parity("onnx", runtime, EagerRuntime(Coded()), inputs, OUTPUTS, [cutoff])


def test_equal_outputs_pass_without_ties(inputs: np.ndarray) -> None:
    record = _check(Altered(), inputs)
    assert (record.ties, record.flips, record.max_absolute_difference) == (0, 0, 0)
    assert record.batches == (1, 8)


def test_a_code_may_differ_where_two_distances_tie(inputs: np.ndarray) -> None:
    record = _check(Altered(code=-1, heatmap=0.5), inputs)
    assert record.ties == 2  # once at each batch size
    assert record.max_absolute_difference == 0  # what follows from the other code is not compared


def test_a_code_that_is_not_nearest_is_refused(inputs: np.ndarray) -> None:
    inputs[3, 0, 0, 0] = 5
    runtime = Altered(code=-1)
    runtime.trained.model.ties = lambda x: {"codes": torch.ones_like(x[:, 0])}
    trained = EagerRuntime(runtime.trained.model)
    with pytest.raises(MedadError, match="codes that are not the nearest"):
        check_parity("onnx", runtime, trained, inputs, OUTPUTS, [1.0])


def test_a_difference_without_another_code_is_refused(inputs: np.ndarray) -> None:
    with pytest.raises(MedadError, match="heatmap at batch 1 differs"):
        _check(Altered(heatmap=0.01), inputs)


def test_a_decision_that_flips_is_refused_even_beside_a_tie(inputs: np.ndarray) -> None:
    cutoff = float(inputs[3].mean()) + 0.01
    with pytest.raises(MedadError, match="decisions of onnx flip"):
        _check(Altered(code=-1, score=0.5), inputs, cutoff)


class IllConditioned(AnomalyModel):
    """Differences of large numbers: of a pixel near 1, float32 keeps what lies above 1/2048 of 1, about."""

    outputs = ("score", "heatmap")

    def __init__(self, large: float) -> None:
        super().__init__()
        self.large = torch.nn.Parameter(torch.tensor(large))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"score": x.mean(dim=(1, 2, 3)), "heatmap": (x + self.large) - self.large}

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        return {"loss": self(batch.x)["score"].mean()}


class Exact(EagerRuntime):
    """Rounds nothing away; ``off`` is added to the heatmap."""

    def __init__(self, off: float = 0.0) -> None:
        super().__init__(IllConditioned(0.0))
        self.off = off

    def run(self, batch: np.ndarray, names: tuple[str, ...]) -> dict[str, np.ndarray]:
        found = super().run(batch, names)
        return {**found, "heatmap": found["heatmap"] + np.float32(self.off)} if "heatmap" in found else found


def test_an_export_may_differ_by_what_the_trained_model_rounds(inputs: np.ndarray) -> None:
    trained = EagerRuntime(IllConditioned(2.0**13))  # rounds to 2**-10 / 2: some 3e-4 of 1.5
    parity = check_parity("onnx", Exact(), trained, inputs, ("score", "heatmap"), [1.0])
    assert 1e-4 < parity.max_relative_difference < 5e-4 < parity.relative_tolerance <= 1e-3


def test_rounding_excuses_no_more_than_itself(inputs: np.ndarray) -> None:
    trained = EagerRuntime(IllConditioned(2.0**13))
    with pytest.raises(MedadError, match="heatmap"):
        check_parity("onnx", Exact(off=5e-3), trained, inputs, ("score", "heatmap"), [1.0])
    with pytest.raises(MedadError, match="heatmap"):  # nor any rounding a thousandth
        check_parity("onnx", Exact(), EagerRuntime(IllConditioned(2.0**17)), inputs, ("score", "heatmap"), [1.0])


class Deviations(AnomalyModel):
    """Scores a pixel's deviation from 0, and counts as a z-score where ``counted``."""

    outputs = ("score",)

    def __init__(self, *, counted: bool, off: float = 0.0) -> None:
        super().__init__()
        self.off = torch.nn.Parameter(torch.tensor(off))
        self.deviations = ("score",) if counted else ()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"score": x.mean(dim=(1, 2, 3)) + self.off}

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        return {"loss": self(batch.x)["score"].mean()}


def _off_by(off: float, *, counted: bool, cutoff: float) -> None:
    inputs = np.full((3, 1, 2, 2), 0.01, np.float32)
    trained = EagerRuntime(Deviations(counted=counted))
    check_parity("onnx", EagerRuntime(Deviations(counted=True, off=off)), trained, inputs, ("score",), [cutoff])


def test_scores_counted_in_deviations_may_differ_by_a_share_of_one() -> None:
    _off_by(5e-5, counted=True, cutoff=0.5)
    with pytest.raises(MedadError, match="more than 1e-04"):  # of 0.01 it is half a per cent
        _off_by(5e-5, counted=False, cutoff=0.5)
    with pytest.raises(MedadError, match="more than 1e-04"):
        _off_by(2e-4, counted=True, cutoff=0.5)
    _off_by(5e-5, counted=True, cutoff=0.01 + 2e-5)  # decided otherwise, by less than an export may differ
