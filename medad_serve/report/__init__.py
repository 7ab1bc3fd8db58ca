"""Figures and the HTML report."""

from medad_serve.report.curves import constants, plot_history, plot_scores
from medad_serve.report.grids import Row, plot_rows, scales, three_planes
from medad_serve.report.page import Listing, Shown, cell, write_report

__all__ = [
    "Listing",
    "Row",
    "Shown",
    "cell",
    "constants",
    "plot_history",
    "plot_rows",
    "plot_scores",
    "scales",
    "three_planes",
    "write_report",
]
