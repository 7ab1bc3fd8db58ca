"""What engines are asked about: prepared held-out items of the run, or random ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medad_serve.errors import MedadError
from medad_serve.runtime import FloatArray, fitting_batch
from medad_serve.spec import Manifest

CALLS = 2
"""Worth of calls, at the largest batch that fits, of items whose answers are compared."""


@dataclass(frozen=True)
class Inputs:
    """Items and where they come from."""

    tensor: FloatArray
    source: str

    def batch(self, size: int) -> FloatArray:
        """Return a batch of some size, the same items over again where there are fewer."""
        return np.ascontiguousarray(self.tensor[np.arange(size) % len(self.tensor)])


def inputs_for(manifest: Manifest, run: Path | None) -> Inputs:
    """Return test items of the run where its data is there, else random ones within what preparing gives."""
    count = CALLS * fitting_batch(manifest.input_shape)
    held_out = _held_out(run, count) if run else None
    if held_out is not None:
        return held_out
    low, high = manifest.prep.values
    noise = np.random.default_rng(0).uniform(low, high, (count, *manifest.input_shape))
    return Inputs(noise.astype(np.float32), f"{count} random items")


def _held_out(path: Path, count: int) -> Inputs | None:
    from medad_serve.training.run import open_run

    run = open_run(path)
    try:
        data = run.prepared()
    except MedadError:
        return None
    rows = data.rows(run.split.patients("test"))
    picked = rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)]
    return Inputs(np.asarray(data.tensor[picked], np.float32), f"{len(picked)} held-out items") if len(picked) else None
