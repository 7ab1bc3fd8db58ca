"""Batches straight from the prepared, memory-mapped array."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
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


class Batches:
    """Batches of a loader, each fetched while the one before is learned from.

    A thread is enough: what is waited for is the disk, where the cache is larger than memory, and the copy into pinned
    memory. The items and their order are the loader's own.
    """

    def __init__(self, loader: DataLoader[Batch]) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self.loader)
        # The order is drawn with the first batch, from the generator that the model uses too: here, in its turn.
        waiting = next(batches, None)
        with ThreadPoolExecutor(1, "batches") as thread:
            while waiting is not None:
                coming = thread.submit(next, batches, None)
                yield waiting
                waiting = coming.result()


def loader(
    tensor: NDArray[np.float32],
    labels: NDArray[np.int64],
    rows: NDArray[np.int64],
    batch_size: int,
    *,
    shuffle: bool = False,
    pinned: bool = False,
) -> Batches:
    """Iterate batches of the rows, ``pinned`` in memory that a GPU copies from by itself.

    No worker processes: a gather from the page cache costs less than handing tensors over. A short last
    batch is dropped in training, where batch norm cannot use a single item.
    """
    return Batches(
        DataLoader(
            PreparedRows(tensor, labels, rows),
            batch_size=batch_size,
            shuffle=shuffle,
            drop_last=shuffle and len(rows) > batch_size,
            collate_fn=_as_it_is,
            pin_memory=pinned,
        )
    )
