"""Importable as ``medad_serve.training`` alone: a top-level import would make a second copy of every module."""

if __name__ != "medad_serve.training":
    raise ImportError("import medad_serve.training, not training: the folder installs as part of medad_serve")
