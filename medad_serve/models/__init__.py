"""Detectors, one file per family; importing this package registers every one of them."""

from importlib import import_module
from pkgutil import iter_modules

from medad_serve.models.base import AnomalyModel, Batch, Family, Faults, count_parameters, families, family, register

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["AnomalyModel", "Batch", "Family", "Faults", "count_parameters", "families", "family", "register"]
