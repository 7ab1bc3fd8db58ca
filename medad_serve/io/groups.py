"""Functional groups of enhanced multi-frame images (PS3.3 C.7.6.16): what holds for which frame."""

from __future__ import annotations

from pydicom.dataset import Dataset

from medad_serve.errors import InputError
from medad_serve.io.layout import damaged
from medad_serve.io.tags import DAMAGED, holds, label


def group_items(ds: Dataset, macro: str, frames: int) -> list[Dataset]:
    """Return the item of a functional group macro: one if shared, else one per frame, empty if absent.

    Raises:
        InputError: 400, some frames lack what others have.
    """
    shared, per_frame = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
    if not (holds(ds, shared) or holds(ds, per_frame)):
        return []
    with damaged(f"{label(per_frame)} or {label(shared)} cannot be read"):
        groups = list(ds[per_frame].value or ()) if holds(ds, per_frame) else []
        items = [item for group in groups[:frames] if (item := _first(group, macro)) is not None]
        if not items:
            common = list(ds[shared].value or ()) if holds(ds, shared) else []
            item = _first(common[0], macro) if common else None
            return [] if item is None else [item]
    if len(items) < frames:
        raise InputError(400, f"{label(per_frame)} has fewer items than frames", DAMAGED)
    return items


def _first(group: Dataset, macro: str) -> Dataset | None:
    sequence = group.get(macro)
    return sequence[0] if sequence else None
