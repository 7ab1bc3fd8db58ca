from __future__ import annotations

import numpy as np
import pytest

from medad_serve.calibration import HeldOut, calibrate
from medad_serve.export.fidelity import compare, fault_of
from medad_serve.spec import Calibration, Fidelity

POLICY = "specificity=0.8"


def _judged(normal: list[float], abnormal: list[float]) -> tuple[HeldOut, Calibration]:
    scores = np.array([*normal, *abnormal], np.float64)
    labels = np.repeat([0, 1], [len(normal), len(abnormal)])
    held_out = HeldOut(scores, labels, tuple(str(row) for row in range(len(scores))))
    made = calibrate(
        held_out,
        fingerprint="none",
        method="held_out",
        folds=0,
        aggregation="max",
        default_policy=POLICY,
        heatmap_scale=1.0,
        inputs=None,
    )
    return held_out, made


def _fidelity(**found: float | None) -> Fidelity:
    usual = {"auroc": 0.9, "auroc_trained": 0.9, "correlation": 1.0, "agreement": 1.0}
    return Fidelity(variant="onnx/int8", items=9, max_relative_difference=0.0, **(usual | found))


def test_auroc_is_the_share_of_pairs_in_order_and_agreement_that_of_equal_decisions() -> None:
    normal, abnormal = [1.0, 2.0, 3.0, 4.0, 5.0], [4.5, 6.0]
    # Scores of another scale decide alike by cutoffs of their own: but for one healthy and one diseased item.
    other_normal, other_abnormal = [10.0, 20.0, 30.0, 50.0, 40.0], [35.0, 60.0]
    found = compare("onnx/int8", POLICY, _judged(normal, abnormal), _judged(other_normal, other_abnormal))
    pairs = [(n, a) for n in normal for a in abnormal]
    other_pairs = [(n, a) for n in other_normal for a in other_abnormal]
    assert found.auroc_trained == pytest.approx(np.mean([a > n for n, a in pairs]))
    assert found.auroc == pytest.approx(np.mean([a > n for n, a in other_pairs]))
    # The cutoff of specificity 0.8 of five normals lies just above the fifth: at 5 and at 50.
    decided = [score > 5 for score in (*normal, *abnormal)]
    other = [score > 50 for score in (*other_normal, *other_abnormal)]
    assert found.agreement == pytest.approx(np.mean(np.array(decided) == other))
    assert found.items == 7


def test_no_more_than_the_stated_auroc_may_be_lost() -> None:
    assert fault_of(_fidelity(auroc=0.899, auroc_trained=0.9)) is None
    assert fault_of(_fidelity(auroc=0.95, auroc_trained=0.9)) is None
    fault = fault_of(_fidelity(auroc=0.897, auroc_trained=0.9, correlation=1.0))
    assert fault == "AUROC falls from 0.9000 to 0.8970, by more than 0.002"


def test_scores_follow_the_trained_model_even_where_the_auroc_does_not_fall() -> None:
    found = fault_of(_fidelity(auroc=0.95, auroc_trained=0.7, correlation=0.93))
    assert "do not follow the trained model's (correlation 0.930, at least 0.95)" in (found or "")
    assert fault_of(_fidelity(auroc=0.95, auroc_trained=0.7, correlation=0.951)) is None
    same = compare("onnx/int8", POLICY, _judged([1, 2, 3, 4, 5], [6]), _judged([7] * 5, [7]))
    assert same.correlation == 0


def test_without_diseased_items_the_correlation_decides() -> None:
    found = compare("onnx/int8", POLICY, _judged([1.0, 2, 3, 4, 5], []), _judged([1.0, 2, 3, 5, 4], []))
    assert found.auroc is None
    assert found.correlation == pytest.approx(9 / 10)  # covariance over variance, both of 1 to 5
    assert "do not follow the trained model's (correlation 0.900" in (fault_of(found) or "")
    assert fault_of(_fidelity(auroc=None, auroc_trained=None, correlation=0.995)) is None
