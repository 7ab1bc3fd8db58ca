"""Memory that is freed and asked for again with every image."""

from __future__ import annotations

import numpy as np

KEPT_BYTES = 16 * 2**20
"""Blocks up to this size come from memory that glibc keeps, which is twice as much at most."""


def keep_freed_pages() -> None:
    """Have glibc keep what an image took for the next one; other allocators do as they did.

    Without it the end of the heap is given back after each image and asked for again, page by page: decoding and
    preparing a 512x512 slice then took more than twice as long. glibc follows the largest separate mapping that was
    freed (M_MMAP_THRESHOLD in mallopt(3)), so one such block is taken and freed, and never touched. Where MALLOC_*
    variables say otherwise, they hold.
    """
    np.empty(KEPT_BYTES, np.uint8)
