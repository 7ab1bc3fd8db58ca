"""The figures of ``metrics.json`` as tables, for the page and the terminal alike."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from medad_serve.report.page import Listing, cell

FIGURES = ("auroc", "auprc", "sensitivity", "specificity", "precision", "f1", "accuracy")
_GRADED = {
    "true": "severity given",
    "area": "share of the image that is marked",
    "contrast": "contrast of the defect",
}


def levels(metrics: dict[str, Any]) -> tuple[str, ...]:
    """Return the levels that say different things: the items, and patients where one of them has several items."""
    unit, patient = metrics[metrics["unit"]], metrics["patient"]
    several = patient["patients"] < unit["normal"] + unit["abnormal"]
    return (metrics["unit"], *["patient"] * several)


def decision_listings(metrics: dict[str, Any]) -> list[Listing]:
    """Return both levels with their classes, and what components and baselines say alone."""
    rows = []
    for level in levels(metrics):
        found = metrics[level]
        for name, part in {"all abnormal": found, **found["classes"]}.items():
            rows.append([level, name, f"{part['normal']} / {part['abnormal']}", *(cell(part[f]) for f in FIGURES)])
    alone = [[name, cell(found["auroc"])] for name, found in metrics["scores"].items()]
    alone += [[f"baseline: {name}", cell(found["auroc"])] for name, found in metrics["baselines"].items()]
    return [
        Listing("Figures with 95 % intervals, bootstrapped by patient", ["level", "class", "n", *FIGURES], rows),
        Listing("Component scores and trivial baselines", ["score", "AUROC"], alone),
    ]


def study_listings(metrics: dict[str, Any]) -> list[Listing]:
    """Return what was found of pixels, severity, synthetic faults and probability, as far as it was."""
    makers = {"pixel": _pixel, "severity": _severity, "synthetic": _synthetic, "probability": _probability}
    return [listing for name, make in makers.items() if name in metrics for listing in make(metrics[name])]


def _pixel(found: dict[str, Any]) -> Iterator[Listing]:
    title = (
        f"Heatmaps on the source pixels ({found['images']} images, {found['left_out']} without known pixels left out)"
    )
    parts = {"all": found, **(found["classes"] if len(found["classes"]) > 1 else {})}
    rows = [[name, str(p["regions"]), cell(p["auroc"]), cell(p["aupro"])] for name, p in parts.items()]
    yield Listing(title, ["class", "regions", "pixel AUROC", f"AUPRO to FPR {found['fpr_limit']:g}"], rows)


def _severity(found: dict[str, Any]) -> Iterator[Listing]:
    rows = [
        [_GRADED[name], str(p["items"]), cell(p["mae"]) if "mae" in p else "", cell(p["spearman"])]
        for name, p in found.items()
    ]
    yield Listing("Severity of real items", ["held against", "n", "mean error", "Spearman"], rows)


def _synthetic(found: dict[str, Any]) -> Iterator[Listing]:
    title = f"Synthetic faults: {found['faulted']} on {found['normal']} healthy items that the model never saw"
    rows = [
        ["image AUROC", cell(found["auroc"])],
        ["pixel AUROC", cell(found["pixel_auroc"])],
        ["AUPRO", cell(found["aupro"])],
    ]
    if "severity" in found:
        rows.append(["severity, mean error", cell(found["severity"]["mae"])])
        rows.append(["severity, Spearman", cell(found["severity"]["spearman"])])
    yield Listing(title, ["figure", "value"], rows)


def _probability(found: dict[str, Any]) -> Iterator[Listing]:
    rows = [[name, cell(p["ece"]), cell(p["brier"])] for name, p in found.items()]
    yield Listing("Calibration of probabilities, by item", ["output", "ECE", "Brier score"], rows)
