"""Load on a running server, where its time goes, and what its handler costs beside the sum of its parts."""

from medad_serve.loadbench.closed_loop import Load, Sent, Target, put_load
from medad_serve.loadbench.footprint import Footprint, find_frontend
from medad_serve.loadbench.overhead import Overhead, measure_overhead
from medad_serve.loadbench.series import Series, measure_series
from medad_serve.loadbench.served import serving

__all__ = [
    "Footprint",
    "Load",
    "Overhead",
    "Sent",
    "Series",
    "Target",
    "find_frontend",
    "measure_overhead",
    "measure_series",
    "put_load",
    "serving",
]
