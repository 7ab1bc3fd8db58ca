"""Decoded pixels to the model's tensor: the one preparation that training, export, benchmark and server share."""

from medad_serve.prep.check import check_input
from medad_serve.prep.geometry import Geometry
from medad_serve.prep.prepare import Prepared, prepare
from medad_serve.prep.window import Shown, apply_window, display, window_of

__all__ = ["Geometry", "Prepared", "Shown", "apply_window", "check_input", "display", "prepare", "window_of"]
