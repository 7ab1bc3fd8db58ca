"""Phantoms: synthetic data of known truth, written as a user's own would lie on disk, one writer a kind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from medad_serve.data.phantoms.head_ct import write_head_ct


class Writer(Protocol):
    """Fills ``out`` with healthy and abnormal patients, whole or not at all; the seed decides every byte."""

    def __call__(self, out: Path, *, healthy: int, abnormal: int, slices: int, seed: int) -> None:
        """Write them; raises MedadError where ``out`` is occupied."""


@dataclass(frozen=True)
class Phantom:
    """One kind of phantom."""

    layout: str
    """How it lies on disk, as ``--data LAYOUT:DIR`` names it."""
    write: Writer


PHANTOMS = {"head-ct": Phantom("cq500", write_head_ct)}
"""By kind, as the command line and a model's registration name it."""

__all__ = ["PHANTOMS", "Phantom", "Writer", "write_head_ct"]
