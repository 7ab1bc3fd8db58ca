"""Importable as ``medad_serve.export`` alone: a top-level import would make a second copy of every module."""

if __name__ != "medad_serve.export":
    raise ImportError("import medad_serve.export, not export: the folder installs as part of medad_serve")
