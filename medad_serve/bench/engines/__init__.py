"""Engines, one file each; importing this package registers every one of them, loading none of their libraries."""

from importlib import import_module
from pkgutil import iter_modules

from medad_serve.bench.engines.base import Engine, Session, Setup, Subject, engine, engines

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["Engine", "Session", "Setup", "Subject", "engine", "engines"]
