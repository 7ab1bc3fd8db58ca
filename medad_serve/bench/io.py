"""What decoding and preparing cost beside bare pydicom."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pydicom

from medad_serve.bench.timing import Timings, interleaved
from medad_serve.data.phantoms.ct_dicom import Encoding, save_ct
from medad_serve.data.phantoms.head_anatomy import Head, head_ct_slice
from medad_serve.io import decode
from medad_serve.models import Family
from medad_serve.prep import prepare


def slice_bytes() -> bytes:
    """Return an uncompressed 512x512 16-bit CT slice of a phantom."""
    rng = np.random.default_rng(0)
    values, _ = head_ct_slice(rng, Head.draw(rng))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slice.dcm"
        encoding = Encoding(signed=True, rle=False)
        save_ct(path, values, patient="bench", index=0, spacing_mm=0.45, encoding=encoding, seed=0)
        return path.read_bytes()


def bench_io(files: Sequence[bytes], chosen: Family, rounds: int = 300) -> Timings:
    """Time decode and decode + prepare beside bare pydicom, over files in memory; per file, milliseconds."""

    def each(task: Callable[[bytes], object]) -> Callable[[], None]:
        def run() -> None:
            for data in files:  # one at a time: results that stay would cost fresh memory pages
                task(data)

        return run

    timings = interleaved(
        {
            "parse: dcmread": each(lambda data: pydicom.dcmread(io.BytesIO(data))),
            "floor: dcmread + pixel_array": each(lambda data: pydicom.dcmread(io.BytesIO(data)).pixel_array),
            "decode": each(decode),
            "decode + prepare": each(lambda data: prepare(decode(data), chosen.prep)),
        },
        rounds,
    )
    return {name: ms / len(files) for name, ms in timings.items()}
