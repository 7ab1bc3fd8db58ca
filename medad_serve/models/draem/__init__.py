"""DRAEM with a severity head: networks, synthetic faults and losses of one family."""

from medad_serve.models.draem.faults import FaultGenerator, SyntheticFaults
from medad_serve.models.draem.model import Draem, DraemWithSeverity
from medad_serve.models.draem.settings import DraemSettings, FaultSettings

__all__ = ["Draem", "DraemSettings", "DraemWithSeverity", "FaultGenerator", "FaultSettings", "SyntheticFaults"]
