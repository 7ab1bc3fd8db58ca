from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from medad_serve.models import Batch
from medad_serve.training.batches import Batches, PreparedRows, loader

ITEMS = np.arange(40, dtype=np.float32).reshape(10, 1, 2, 2)
LABELS = np.arange(10) % 2
ROWS = np.array([1, 3, 4, 5, 7, 8, 9])


def _shuffled(seed: int) -> Batches:
    torch.manual_seed(seed)
    return loader(ITEMS, LABELS, ROWS, 2, shuffle=True)


def test_batches_are_gathered_rows() -> None:
    batches = list(loader(ITEMS, LABELS, ROWS, 3))
    assert [len(batch.x) for batch in batches] == [3, 3, 1]
    assert np.array_equal(torch.cat([batch.x for batch in batches]).numpy(), ITEMS[ROWS])
    assert torch.cat([batch.rows for batch in batches]).tolist() == ROWS.tolist()
    assert torch.cat([batch.labels for batch in batches]).tolist() == LABELS[ROWS].tolist()


def test_what_is_fetched_ahead_is_what_the_loader_yields_and_draws_no_random_number_between() -> None:
    """The model draws from the same generator: its numbers must not depend on which batch is being fetched."""

    def seen(batches: Batches, ahead: bool) -> list[tuple[Batch, float]]:
        return [(batch, float(torch.rand(()))) for _ in range(2) for batch in (batches if ahead else batches.loader)]

    plain, ahead = seen(_shuffled(3), ahead=False), seen(_shuffled(3), ahead=True)
    assert len(plain) == len(ahead) == 6  # the seventh row is a short batch, twice
    for (one, drawn), (other, drawn_too) in zip(plain, ahead, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
        assert drawn == drawn_too
    orders = [torch.cat([batch.rows for batch, _ in ahead[start : start + 3]]).tolist() for start in (0, 3)]
    assert orders[0] != orders[1]


def test_another_seed_is_another_order() -> None:
    first, again, other = (torch.cat([batch.rows for batch in _shuffled(seed)]).tolist() for seed in (1, 1, 2))
    assert first == again != other


def test_the_next_batch_is_fetched_while_one_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []
    done = threading.Semaphore(0)
    gather = PreparedRows.__getitems__

    def noted(self: PreparedRows, indices: NDArray[np.int64]) -> Batch:
        fetched.append(threading.current_thread().name)
        done.release()
        return gather(self, indices)

    monkeypatch.setattr(PreparedRows, "__getitems__", noted)
    batches = iter(loader(ITEMS, LABELS, ROWS, 2))
    next(batches)
    assert done.acquire(timeout=10)
    assert done.acquire(timeout=10), "the second batch waits to be asked for"
    assert fetched[0] == threading.current_thread().name
    assert fetched[1].startswith("batches")


def test_a_fault_while_fetching_is_raised_where_the_batch_is_due() -> None:
    batches = iter(loader(ITEMS, LABELS, np.array([0, 1, 99]), 2))
    assert len(next(batches).x) == 2
    with pytest.raises(IndexError):
        next(batches)
