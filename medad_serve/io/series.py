"""The DICOM slices of one series to one stack of frames."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from medad_serve.errors import InputError
from medad_serve.io.dicom import decode_dicom
from medad_serve.io.elements import is_dicom
from medad_serve.io.grid import SAME_MM, volume_affine
from medad_serve.io.limits import Limits
from medad_serve.io.pixels import Axes, Pixels

_SAME_DIRECTION = 1e-3


def decode_series(members: Mapping[int, bytes], limits: Limits) -> Pixels:
    """Decode DICOM slices into one stack ``(frames, H, W)``, ordered along the slice normal.

    Localisers are left out; of the others the series, orientation and size with most slices is kept, and one
    slice of each place. Whatever is left out is counted in ``facts.notes``, and so are slices that are missing.
    Slices that state no place keep the order given. Where slices differ in spacing or windows, those of the
    first hold. The affine is that of the slices kept, where they lie evenly. ``members`` are given by their places
    among the files sent, which ``facts.sources`` tells again of every frame.

    Raises:
        InputError: 400 no member is a readable image, 413 too many values.
    """
    slices, refusals = _decode_all(members, limits)
    if not slices:
        reasons = "; ".join(refusals) or "it is empty"
        raise InputError(400, f"no file sent is a readable DICOM image ({reasons})", "Send DICOM slices")
    notes = [f"{files(count)} left out: {reason}" for reason, count in refusals.items()]
    kept = _most(_without_localizers(slices, notes), "of another series", lambda p: p.facts.series, notes)
    kept = _most(kept, "of another orientation", _orientation(kept), notes)
    kept = _most(kept, "of another size", lambda p: (p.array.shape[1:], p.inverted), notes)
    return _stack(_in_order(kept, notes), notes)


def _decode_all(members: Mapping[int, bytes], limits: Limits) -> tuple[list[Pixels], Counter[str]]:
    """Return what decodes, and how many members do not, by reason."""
    slices: list[Pixels] = []
    refusals: Counter[str] = Counter()
    values = frames = 0
    for place, member in members.items():
        try:
            if not is_dicom(member):
                raise InputError(415, "it is no DICOM file")
            pixels = decode_dicom(member, limits)
        except InputError as error:
            refusals[error.message] += 1
            continue
        slices.append(replace(pixels, facts=replace(pixels.facts, sources=(place,) * pixels.frames)))
        values += pixels.array.size
        frames += pixels.frames
        if values > limits.max_values or frames > limits.max_frames:
            fault = f"the files hold more than {limits.max_values} values or {limits.max_frames} frames"
            raise InputError(413, fault, "Send fewer files")
    return slices, refusals


def files(count: int) -> str:
    """Return a count of files in words."""
    return "1 file" if count == 1 else f"{count} files"


def _without_localizers(slices: list[Pixels], notes: list[str]) -> list[Pixels]:
    """Leave out the overviews on which slices were planned, unless there is nothing else."""
    kept = [pixels for pixels in slices if not pixels.facts.localizer]
    if kept and len(kept) < len(slices):
        notes.append(f"{files(len(slices) - len(kept))} left out: localiser (scout view)")
    return kept or slices


def _most(slices: list[Pixels], fault: str, key: Callable[[Pixels], Hashable], notes: list[str]) -> list[Pixels]:
    """Keep the slices of the commonest key (the first of equals), noting how many are left out."""
    common = Counter(map(key, slices)).most_common(1)[0][0]
    kept = [pixels for pixels in slices if key(pixels) == common]
    if len(kept) < len(slices):
        notes.append(f"{files(len(slices) - len(kept))} {fault} left out")
    return kept


def _orientation(slices: list[Pixels]) -> Callable[[Pixels], Hashable]:
    """Return a key that is equal for slices whose rows and columns run the same way, but for rounding."""
    known: list[Axes] = []

    def key(pixels: Pixels) -> Hashable:
        axes = pixels.facts.axes
        if axes is None:
            return pixels.facts.normal
        for number, other in enumerate(known):
            if max(abs(a - b) for a, b in zip(axes, other, strict=True)) < _SAME_DIRECTION:
                return number
        known.append(axes)
        return len(known) - 1

    return key


def _in_order(slices: list[Pixels], notes: list[str]) -> list[Pixels]:
    places = [pixels.facts.position for pixels in slices]
    known = [place for place in places if place is not None]
    if len(known) < len(slices):
        if len(slices) > 1:
            notes.append("slices without (0020,0032) Image Position (Patient): kept in the order sent")
        return slices
    order = sorted(range(len(slices)), key=known.__getitem__)
    kept: list[Pixels] = []
    for pixels in (slices[i] for i in order):
        if not any(_same_place(pixels, other) for other in kept[-1:]):
            kept.append(pixels)
    if len(kept) < len(slices):
        notes.append(f"{files(len(slices) - len(kept))} left out: another slice lies at the same place")
    return kept


def _same_place(one: Pixels, other: Pixels) -> bool:
    """Whether two single slices lie on each other."""
    places = one.facts.origins + other.facts.origins
    return len(places) == 2 and max(abs(a - b) for a, b in zip(*places, strict=True)) < SAME_MM


def _stack(slices: list[Pixels], notes: list[str]) -> Pixels:
    first = slices[0]
    spacing = first.spacing_mm
    if any(pixels.spacing_mm != spacing for pixels in slices):
        notes.append("slices differ in (0028,0030) Pixel Spacing: that of the first is used")
        spacing = None
    origins = tuple(place for pixels in slices for place in pixels.facts.origins)
    affine, uneven = None, ""
    if first.facts.axes is not None and len(origins) == sum(pixels.frames for pixels in slices):
        affine, uneven = volume_affine(origins, first.facts.axes, spacing)
    notes += [uneven] * bool(uneven)
    ranges = [pixels.facts.stored_range for pixels in slices]
    inner = dict.fromkeys(note for pixels in slices for note in pixels.facts.notes)
    facts = replace(
        first.facts,
        stored_range=(min(low for low, _ in ranges), max(high for _, high in ranges)),
        notes=tuple(dict.fromkeys((*notes, *inner))),
        origins=origins,
        sources=tuple(source for pixels in slices for source in pixels.facts.sources),
        uneven=uneven,
    )
    padding = None
    if any(pixels.padding is not None for pixels in slices):
        padding = np.concatenate([_mask(pixels) for pixels in slices])
    array = np.concatenate([pixels.array for pixels in slices])
    return replace(first, array=array, padding=padding, affine=affine, facts=facts)


def _mask(pixels: Pixels) -> NDArray[np.bool_]:
    return np.zeros(pixels.array.shape, np.bool_) if pixels.padding is None else pixels.padding
