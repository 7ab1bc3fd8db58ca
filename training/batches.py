"""Batches straight from the prepared, memory-mapped array."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from medad_serve.models import Batch


class PreparedRows(Dataset[Batch]):
    """Rows of the prepared data; a whole batch is gathered in one copy, with labels and row numbers beside it."""

    def __init__(self, tensor: NDArray[np.float32], labels: NDArray[np.int64], rows: NDArray[np.int64]) -> None:
        self.tensor = tensor
        self.labels = labels
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        rows = self.rows[np.asarray(indices)]
        return Batch(torch.from_numpy(self.tensor[rows]), torch.from_numpy(self.labels[rows]), torch.from_numpy(rows))

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])


def _as_it_is(batch: Any) -> Any:
    return batch


def loader(
    tensor: NDArray[np.float32],
    labels: NDArray[np.int64],
    rows: NDArray[np.int64],
    batch_size: int,
    *,
    shuffle: bool = False,
) -> DataLoader[Batch]:
    """Iterate batches of the rows.

    No worker processes: a gather from the page cache costs less than handing tensors over. A short last
    batch is dropped in training, where batch norm cannot use a single item.
    """
    return DataLoader(
        PreparedRows(tensor, labels, rows),
        batch_size=batch_size,
        shuffle=shuffle,
        drop_last=shuffle and len(rows) > batch_size,
        collate_fn=_as_it_is,
    )
