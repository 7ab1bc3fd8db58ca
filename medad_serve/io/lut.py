"""Lookup tables of DICOM: modality LUT and VOI LUT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from medad_serve.errors import InputError
from medad_serve.io.layout import Layout, damaged
from medad_serve.io.tags import DAMAGED, holds, label


@dataclass(frozen=True, eq=False)
class Lut:
    """A table of entries for the input values ``first``, ``first + 1`` ..."""

    first: int
    entries: NDArray[np.float32]
    bits: int
    """Of an entry: 8 to 16."""

    def __call__(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """Look values of any shape up, rounded; those outside take the first or last entry (PS3.3 C.11.1.1)."""
        index = np.clip(np.rint(np.nan_to_num(values)).astype(np.int64) - self.first, 0, len(self.entries) - 1)
        found: NDArray[np.float32] = self.entries[index]
        return found


def read_lut(ds: Dataset, sequence: str, layout: Layout, root: Dataset | None = None) -> Lut | None:
    """Read the first item of a LUT sequence, None where there is none; ``root`` holds the pixels where ``ds`` does not.

    Raises:
        InputError: 400, the table cannot be read.
    """
    if not holds(ds, sequence):
        return None
    message = f"{label(sequence)} cannot be read"
    with damaged(message):
        if not ds[sequence].value:
            return None
        item = ds[sequence].value[0]
        count, first, bits = (int(v) for v in item.LUTDescriptor)
        data = item["LUTData"].value
        if isinstance(data, bytes):
            order = ">" if (root or ds).original_encoding[1] is False else "<"
            entries = np.frombuffer(data, f"{order}u2").astype(np.float32)
        else:
            entries = np.asarray(data, np.float32)
        count = (count & 0xFFFF) or 65536
        first = first - 65536 if layout.signed and first > 32767 else first
    if entries.ndim != 1 or entries.size < count or bits not in range(8, 17):
        raise InputError(400, message, DAMAGED)
    return Lut(first, entries[:count], bits)
