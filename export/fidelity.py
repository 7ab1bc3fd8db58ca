"""Does a reduced precision still tell normal from abnormal as the trained model does, on real held-out items?"""

from __future__ import annotations

import numpy as np
from sklearn.metrics import roc_auc_score

from medad_serve.calibration import Decider, HeldOut
from medad_serve.errors import MedadError
from medad_serve.export.parity import relative_difference
from medad_serve.metrics import Floats
from medad_serve.spec import Calibration, Fidelity

MOST_AUROC_LOST = 0.002
LEAST_CORRELATION = 0.95
"""Of scores with the trained model's: what differs is then a third of what varies. On few diseased items the AUROC
alone accepts what happens to rank these higher, and of a model that learned little anything at all."""
LEAST_CORRELATION_ALONE = 0.99
"""Asked for in place of the AUROC where no held-out item is diseased: what differs is then a seventh of what varies."""


def compare(
    variant: str,
    policy: str,
    trained: tuple[HeldOut, Calibration],
    reduced: tuple[HeldOut, Calibration],
    layers: int = 0,
    float_layers: int = 0,
) -> Fidelity:
    """Compare the scores and decisions of the same items, each decided by cutoffs of its own."""
    (exact, exact_calibration), (found, calibration) = trained, reduced
    both = 0 < exact.labels.sum() < len(exact.labels)
    decisions = [
        held_out.scores >= Decider(made.item).cutoff(policy)
        for held_out, made in ((exact, exact_calibration), (found, calibration))
    ]
    return Fidelity(
        variant=variant,
        items=len(exact.scores),
        auroc=float(roc_auc_score(found.labels, found.scores)) if both else None,
        auroc_trained=float(roc_auc_score(exact.labels, exact.scores)) if both else None,
        correlation=_correlation(exact.scores, found.scores),
        agreement=float(np.mean(decisions[0] == decisions[1])),
        max_relative_difference=relative_difference(found.scores, exact.scores),
        layers=layers,
        float_layers=float_layers,
    )


def _correlation(exact: Floats, found: Floats) -> float:
    """Return Pearson's, 0 where every score is the same."""
    return float(np.corrcoef(exact, found)[0, 1]) if np.ptp(exact) and np.ptp(found) else 0.0


def fault_of(fidelity: Fidelity) -> str | None:
    """Return why a reduced precision is not accepted, None where it is."""
    least, where = LEAST_CORRELATION_ALONE, " where no held-out item is diseased"
    if fidelity.auroc is not None and fidelity.auroc_trained is not None:
        if fidelity.auroc_trained - fidelity.auroc > MOST_AUROC_LOST:
            fall = f"from {fidelity.auroc_trained:.4f} to {fidelity.auroc:.4f}"
            return f"AUROC falls {fall}, by more than {MOST_AUROC_LOST}"
        least, where = LEAST_CORRELATION, ""
    if fidelity.correlation >= least:
        return None
    found = f"correlation {fidelity.correlation:.3f}, at least {least}{where}"
    return f"its scores do not follow the trained model's ({found})"


def refusal(variant: str, fault: str) -> MedadError:
    """Return the error for a variant that is not accepted."""
    return MedadError(f"{variant}: {fault}", "Nothing was written; export it in float32, or in another precision")
