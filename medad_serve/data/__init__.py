"""Data sets as sample tables, patient-level splits and the cache of prepared tensors."""

from importlib import import_module
from pkgutil import iter_modules

from medad_serve.data.cache import Prepared, load_prepared
from medad_serve.data.samples import Sample, Table, read_table
from medad_serve.data.splits import Given, Split, SplitSettings, inherit_split, split_patients

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = [
    "Given",
    "Prepared",
    "Sample",
    "Split",
    "SplitSettings",
    "Table",
    "inherit_split",
    "load_prepared",
    "read_table",
    "split_patients",
]
