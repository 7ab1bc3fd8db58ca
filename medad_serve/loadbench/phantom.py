"""What is sent where nobody names a file."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from medad_serve.data.phantoms.ct_dicom import Encoding, save_ct
from medad_serve.data.phantoms.head_anatomy import Head, head_ct_slice


def slice_bytes() -> bytes:
    """Return an uncompressed 512x512 16-bit CT slice of a phantom."""
    rng = np.random.default_rng(0)
    values, _ = head_ct_slice(rng, Head.draw(rng))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slice.dcm"
        encoding = Encoding(signed=True, rle=False)
        save_ct(path, values, patient="bench", index=0, spacing_mm=0.45, encoding=encoding, seed=0)
        return path.read_bytes()
