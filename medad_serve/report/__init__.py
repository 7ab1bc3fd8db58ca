"""Figures and the HTML report."""

from medad_serve.report.agreement import (
    Confusion,
    Scatter,
    Sureness,
    plot_confusion,
    plot_reliability,
    plot_severity,
)
from medad_serve.report.curves import constants, plot_history, plot_scores
from medad_serve.report.grids import Row, color_map, plot_rows, scales, three_planes
from medad_serve.report.listings import decision_listings, levels, study_listings
from medad_serve.report.page import Listing, Maps, Shown, cell, write_report

__all__ = [
    "Confusion",
    "Listing",
    "Maps",
    "Row",
    "Scatter",
    "Shown",
    "Sureness",
    "cell",
    "color_map",
    "constants",
    "decision_listings",
    "levels",
    "plot_confusion",
    "plot_history",
    "plot_reliability",
    "plot_rows",
    "plot_scores",
    "plot_severity",
    "scales",
    "study_listings",
    "three_planes",
    "write_report",
]
