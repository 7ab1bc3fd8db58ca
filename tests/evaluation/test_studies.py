from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.metrics import brier_score_loss, mean_absolute_error, roc_auc_score
from torch import Tensor

from medad_serve.evaluation import Subject, measure, score, study
from medad_serve.models import AnomalyModel, Batch
from medad_serve.models.base import Faults, _families, register
from medad_serve.spec import Frozen, PrepSpec

Make = Callable[..., Subject]
WITH_SEVERITY = ("score", "heatmap", "severity")


class Planter(AnomalyModel):
    """Makes bright squares on every second item; cannot be trained."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        raise AssertionError("its subject answers for it")

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        raise AssertionError("nobody trains it")

    def with_faults(self, x: Tensor, seed: int) -> Faults:
        drawn = torch.rand(len(x), generator=torch.Generator().manual_seed(seed))
        severity = torch.where(torch.arange(len(x)) % 2 == 0, 10 * drawn, 0.0)
        mask = torch.zeros_like(x)
        mask[::2, :, 4:12, 4:12] = 1
        return Faults((x + mask * severity.view(-1, 1, 1, 1) / 15).clamp(0, 1), mask, severity)


@pytest.fixture
def planter() -> Iterator[str]:
    register("planter", settings=Frozen, phantom="head-ct", prep=PrepSpec(size=(32, 32)))(lambda *_: Planter())
    yield "planter"
    del _families["planter"]


def test_a_model_of_scores_alone_is_measured_by_these_alone(make_subject: Make) -> None:
    subject = make_subject(("score", "heatmap"))
    bare = score(subject)
    metrics = measure(subject, bare, subject.policy)
    assert "pixel" in metrics
    assert not {"severity", "synthetic", "probability"} & metrics.keys()


def test_severity_is_held_against_what_was_given_and_against_the_defect(make_subject: Make) -> None:
    subject = make_subject(WITH_SEVERITY)
    scored = score(subject)
    found = measure(subject, scored, subject.policy)["severity"]
    samples = [subject.data.samples[r] for r in scored.rows]
    predicted = scored.components["severity"]
    graded = [i for i, s in enumerate(samples) if s.severity is not None]
    true = [samples[i].severity for i in graded]
    assert found["true"]["items"] == len(graded) == 10
    assert found["true"]["mae"]["value"] == pytest.approx(mean_absolute_error(true, predicted[graded]))
    assert found["true"]["spearman"]["value"] == pytest.approx(spearmanr(true, predicted[graded]).statistic)
    assert found["true"]["spearman"]["value"] > 0.9
    marked = [i for i, s in enumerate(samples) if s.mask is not None]
    sizes = [(6 + int(samples[i].path.stem)) ** 2 for i in marked]
    shares = [
        n / ((50 + j) * (70 - j)) for n, j in zip(sizes, (int(samples[i].path.stem) for i in marked), strict=True)
    ]
    assert found["area"]["items"] == 9
    assert found["area"]["spearman"]["value"] == pytest.approx(spearmanr(shares, predicted[marked]).statistic)
    assert found["contrast"]["spearman"]["value"] > 0.9
    assert "mae" not in found["area"]


def test_probability_and_score_are_held_against_labels(make_subject: Make) -> None:
    subject = make_subject(("score", "heatmap", "probability"))
    scored = score(subject)
    found = measure(subject, scored, subject.policy)["probability"]
    assert set(found) == {"score", "probability"}
    for name, values in (("score", scored.items.scores), ("probability", scored.components["probability"])):
        assert found[name]["brier"]["value"] == pytest.approx(brier_score_loss(scored.items.labels, values))
        assert 0 < found[name]["ece"]["value"] < 1


def test_a_score_that_is_the_probability_stands_once(make_subject: Make) -> None:
    subject = make_subject(("score", "heatmap", "probability"))
    scored = score(subject)
    scored.items.scores[:] = scored.components["probability"]
    assert list(study(subject, scored).probabilities) == ["probability"]
    scored.items.scores[:] *= -1
    assert list(study(subject, scored).probabilities) == ["probability"]


def test_a_logit_is_read_through_a_sigmoid(make_subject: Make, planter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Planter, "logit", True)
    subject = make_subject(("score", "heatmap", "probability"), planter)
    scored = score(subject)
    scored.items.scores[:] = np.linspace(-2, 2, 16)
    found = study(subject, scored).probabilities
    assert list(found) == ["sigmoid of score", "probability"]
    assert found["sigmoid of score"] == pytest.approx(1 / (1 + np.exp(-np.linspace(-2, 2, 16))))


def test_synthetic_faults_on_unseen_normals_are_measured(make_subject: Make, planter: str) -> None:
    subject = make_subject(WITH_SEVERITY, planter)
    scored = score(subject)
    studied = study(subject, scored)
    made = studied.synthetic
    assert made is not None
    assert made.predicted is not None
    healthy = scored.items.labels == 0
    assert set(made.patients) == {p for p, h in zip(scored.items.patients, healthy, strict=True) if h}
    assert len(made.scores) == 200
    found = measure(subject, scored, subject.policy, studied)["synthetic"]
    assert found["faulted"] == int(made.faulted.sum()) == 100
    assert found["normal"] == 6
    scores = np.concatenate([scored.items.scores[healthy], made.scores[made.faulted]])
    assert found["auroc"]["value"] == pytest.approx(roc_auc_score([0] * 6 + [1] * 100, scores))
    true, predicted = made.severity[made.faulted], made.predicted[made.faulted]
    assert found["severity"]["mae"]["value"] == pytest.approx(mean_absolute_error(true, predicted))
    assert found["severity"]["spearman"]["value"] == pytest.approx(spearmanr(true, predicted).statistic)
    assert found["severity"]["spearman"]["value"] > 0.95
    assert found["pixel_auroc"]["value"] > 0.9
    assert found["aupro"]["low"] <= found["aupro"]["value"] <= found["aupro"]["high"]


def test_a_model_without_severity_has_its_faults_found_all_the_same(make_subject: Make, planter: str) -> None:
    subject = make_subject(("score", "heatmap"), planter)
    found = measure(subject, score(subject), subject.policy)
    assert "severity" not in found["synthetic"]
    assert "severity" not in found
    assert found["synthetic"]["auroc"]["value"] > 0.9


def test_the_same_faults_come_again(make_subject: Make, planter: str) -> None:
    subject = make_subject(WITH_SEVERITY, planter)
    scored = score(subject)
    first, second = study(subject, scored).synthetic, study(subject, scored).synthetic
    assert first is not None
    assert second is not None
    np.testing.assert_array_equal(first.scores, second.scores)
