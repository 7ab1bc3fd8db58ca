"""Does a reduced precision still tell normal from abnormal as the trained model does, on real held-out items?"""

from __future__ import annotations

import numpy as np
from sklearn.metrics import roc_auc_score

from medad_serve.calibration import Decider, HeldOut
from medad_serve.errors import MedadError
from medad_serve.export.parity import relative_difference
from medad_serve.spec import Calibration, Fidelity

MOST_AUROC_LOST = 0.002
LEAST_CORRELATION = 0.99
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
        correlation=float(np.corrcoef(exact.scores, found.scores)[0, 1]),
        agreement=float(np.mean(decisions[0] == decisions[1])),
        max_relative_difference=relative_difference(found.scores, exact.scores),
        layers=layers,
        float_layers=float_layers,
    )


def fault_of(fidelity: Fidelity) -> str | None:
    """Return why a reduced precision is not accepted, None where it is."""
    if fidelity.auroc is None or fidelity.auroc_trained is None:
        if fidelity.correlation >= LEAST_CORRELATION:
            return None
        return (
            f"its scores do not follow the trained model's (correlation {fidelity.correlation:.3f}, "
            f"at least {LEAST_CORRELATION} where no held-out item is diseased)"
        )
    lost = fidelity.auroc_trained - fidelity.auroc
    if lost <= MOST_AUROC_LOST:
        return None
    return f"AUROC falls from {fidelity.auroc_trained:.4f} to {fidelity.auroc:.4f}, by more than {MOST_AUROC_LOST}"


def refusal(variant: str, fault: str) -> MedadError:
    """Return the error for a variant that is not accepted."""
    return MedadError(f"{variant}: {fault}", "Nothing was written; export it in float32, or in another precision")
