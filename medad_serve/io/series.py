"""The DICOM slices of one series to one stack of frames."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from medad_serve.errors import InputError
from medad_serve.io.dicom import decode_dicom
from medad_serve.io.elements import is_dicom
from medad_serve.io.grid import SAME_MM, volume_affine
from medad_serve.io.limits import Limits
from medad_serve.io.pixels import Axes, LeftOut, Pixels
from medad_serve.io.tags import label

_SAME_DIRECTION = 1e-3
_PLACE = f"{label('ImagePositionPatient')} or {label('ImageOrientationPatient')}"
_OF = "{files} {reason} left out"
_BECAUSE = "{files} left out: {reason}"


@dataclass
class _Account:
    """What a reader of the answer should know of the files: notes, and which are left out and why."""

    notes: list[str]
    left_out: dict[int, str]

    def leave_out(self, slices: Sequence[Pixels], reason: str, note: str = _OF) -> None:
        """Record slices that are left out, if there are any."""
        if slices:
            self.notes.append(note.format(files=files(len(slices)), reason=reason))
            self.left_out.update((pixels.facts.sources[0], reason) for pixels in slices)


def decode_series(members: Mapping[int, bytes], limits: Limits) -> Pixels:
    """Decode DICOM slices into one stack ``(frames, H, W)``, ordered along the slice normal.

    Localisers are left out; of the others the series, orientation and size with most slices is kept, and one
    slice of each place. Whatever is left out is counted in ``facts.notes`` and told in ``facts.left_out``, and
    slices that are missing are noted. Slices that state no place keep the order given. Where slices differ in
    spacing or windows, those of the first hold. The affine is that of the slices kept, where they lie evenly.
    ``members`` are given by their places among the files sent, which ``facts.sources`` tells again of every frame.

    Raises:
        InputError: 400 no member is a readable image, 413 too many values.
    """
    slices, refusals = _decode_all(members, limits)
    if not slices:
        reasons = "; ".join(dict.fromkeys(refusals.values())) or "it is empty"
        raise InputError(400, f"no file sent is a readable DICOM image ({reasons})", "Send DICOM slices")
    notes = [_BECAUSE.format(files=files(count), reason=why) for why, count in Counter(refusals.values()).items()]
    account = _Account(notes, refusals)
    kept = _most(_without_localizers(slices, account), "of another series", lambda p: p.facts.series, account)
    kept = _as_placed(kept, account)
    kept = _most(kept, "of another orientation", _orientation(kept), account)
    kept = _most(kept, "of another size", lambda p: (p.array.shape[1:], p.inverted), account)
    return _stack(_in_order(kept, account), account)


def _decode_all(members: Mapping[int, bytes], limits: Limits) -> tuple[list[Pixels], dict[int, str]]:
    """Return what decodes, and why other members do not."""
    slices: list[Pixels] = []
    refusals: dict[int, str] = {}
    values = frames = 0
    for place, member in members.items():
        try:
            if not is_dicom(member):
                raise InputError(415, "it is no DICOM file")
            pixels = decode_dicom(member, limits)
        except InputError as error:
            refusals[place] = error.message
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


def _without_localizers(slices: list[Pixels], account: _Account) -> list[Pixels]:
    """Leave out the overviews on which slices were planned, unless there is nothing else."""
    kept = [pixels for pixels in slices if not pixels.facts.localizer]
    if kept:
        scouts = [pixels for pixels in slices if pixels.facts.localizer]
        account.leave_out(scouts, "localiser (scout view)", _BECAUSE)
    return kept or slices


def _most(slices: list[Pixels], fault: str, key: Callable[[Pixels], Hashable], account: _Account) -> list[Pixels]:
    """Keep the slices of the commonest key (the first of equals)."""
    keys = [key(pixels) for pixels in slices]
    common = Counter(keys).most_common(1)[0][0]
    account.leave_out([p for p, other in zip(slices, keys, strict=True) if other != common], fault)
    return [p for p, other in zip(slices, keys, strict=True) if other == common]


def _as_placed(slices: list[Pixels], account: _Account) -> list[Pixels]:
    """Keep the slices that state where they lie, or those that do not where these are more."""
    placed = [pixels for pixels in slices if pixels.facts.position is not None]
    others = [pixels for pixels in slices if pixels.facts.position is None]
    if len(placed) < len(others):
        account.leave_out(placed, f"it states {_PLACE}, which most lack", _BECAUSE)
        return others
    account.leave_out(others, f"it lacks {_PLACE}", _BECAUSE)
    return placed


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


def _in_order(slices: list[Pixels], account: _Account) -> list[Pixels]:
    places = [pixels.facts.position for pixels in slices]
    known = [place for place in places if place is not None]
    if len(known) < len(slices):
        if len(slices) > 1:
            account.notes.append("slices without (0020,0032) Image Position (Patient): kept in the order sent")
        return slices
    kept: list[Pixels] = []
    doubles: list[Pixels] = []
    for pixels in (slices[i] for i in sorted(range(len(slices)), key=known.__getitem__)):
        (doubles if any(_same_place(pixels, other) for other in kept[-1:]) else kept).append(pixels)
    account.leave_out(doubles, "another slice lies at the same place", _BECAUSE)
    return kept


def _same_place(one: Pixels, other: Pixels) -> bool:
    """Whether two single slices lie on each other."""
    places = one.facts.origins + other.facts.origins
    return len(places) == 2 and max(abs(a - b) for a, b in zip(*places, strict=True)) < SAME_MM


def _stack(slices: list[Pixels], account: _Account) -> Pixels:
    first, notes = slices[0], account.notes
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
        left_out=tuple(LeftOut(place, reason) for place, reason in sorted(account.left_out.items())),
    )
    padding = None
    if any(pixels.padding is not None for pixels in slices):
        padding = np.concatenate([_mask(pixels) for pixels in slices])
    array = np.concatenate([pixels.array for pixels in slices])
    return replace(first, array=array, padding=padding, affine=affine, facts=facts)


def _mask(pixels: Pixels) -> NDArray[np.bool_]:
    return np.zeros(pixels.array.shape, np.bool_) if pixels.padding is None else pixels.padding
