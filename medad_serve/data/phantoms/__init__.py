"""Phantoms: synthetic data of known truth, written as a user's own would lie on disk, one writer a kind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from medad_serve.data.phantoms.chest import write_chest
from medad_serve.data.phantoms.hdmap import write_hdmap
from medad_serve.data.phantoms.head_ct import write_head_ct
from medad_serve.data.phantoms.oct import write_oct
from medad_serve.data.phantoms.vertebrae import write_vertebrae


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
    healthy: int
    """Patients and slices of each that are written unless others are asked for: enough for quickstart."""
    abnormal: int
    slices: int


PHANTOMS = {
    "head-ct": Phantom("cq500", write_head_ct, healthy=400, abnormal=80, slices=2),
    "chest": Phantom("folders", write_chest, healthy=448, abnormal=448, slices=1),
    "hdmap": Phantom("mvtec", write_hdmap, healthy=250, abnormal=80, slices=1),
    "oct": Phantom("folders", write_oct, healthy=160, abnormal=60, slices=2),
    "vertebrae": Phantom("volumes", write_vertebrae, healthy=38, abnormal=16, slices=1),
}
"""By kind, as the command line and a model's registration name it."""

__all__ = [
    "PHANTOMS",
    "Phantom",
    "Writer",
    "write_chest",
    "write_hdmap",
    "write_head_ct",
    "write_oct",
    "write_vertebrae",
]
