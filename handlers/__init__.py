"""Importable as ``medad_serve.handlers`` alone: a top-level import would make a second copy of every module."""

if __name__ != "medad_serve.handlers":
    raise ImportError("import medad_serve.handlers, not handlers: the folder installs as part of medad_serve")
