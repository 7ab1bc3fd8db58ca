"""Decoded pixels to the model's tensor: the one preparation that training, export, benchmark and server share."""

from medad_serve.prep.check import check_input, check_tensor
from medad_serve.prep.familiar import Statistics, input_range, measure, unfamiliar
from medad_serve.prep.geometry import Geometry
from medad_serve.prep.prepare import Prepared, prepare
from medad_serve.prep.window import Shown, apply_window, display, window_of

__all__ = [
    "Geometry",
    "Prepared",
    "Shown",
    "Statistics",
    "apply_window",
    "check_input",
    "check_tensor",
    "display",
    "input_range",
    "measure",
    "prepare",
    "unfamiliar",
    "window_of",
]
