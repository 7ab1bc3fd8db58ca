"""DICOM to rescaled pixels, through pydicom."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from medad_serve.io.elements import read_elements
from medad_serve.io.facts import read_facts, shared_spacing, spacing
from medad_serve.io.grid import volume_affine
from medad_serve.io.layout import GREY, Layout, damaged, read_layout
from medad_serve.io.limits import Limits
from medad_serve.io.pixels import Pixels, is_grey
from medad_serve.io.quiet import quiet
from medad_serve.io.rescale import padding_mask, rescale
from medad_serve.io.stored import correct_unused_bits, read_stored
from medad_serve.io.tags import label

EQUAL_CHANNELS = "colour with three equal channels, read as grey of 0..255"


def decode_dicom(data: bytes, limits: Limits) -> Pixels:
    """Decode one DICOM file, with or without the PS3.10 preamble; frames keep the order of the file.

    Raises:
        InputError: 400 damaged, 413 over the limits, 415 encoding not supported, 422 no usable pixels.
    """
    with quiet():
        ds, declared = read_elements(data, limits)
        # a deflated file has been inflated by now: its pixels are plain
        syntax = ExplicitVRLittleEndian if declared == DeflatedExplicitVRLittleEndian else declared
        layout = read_layout(ds, limits)
        raw, notes = read_stored(ds, layout, syntax)
        if layout.photometric not in GREY:
            return _color(raw, ds, layout, declared, notes)
        stored = correct_unused_bits(raw, layout, syntax)
        array, stored_range = rescale(stored, ds, layout)
        facts = read_facts(ds, layout, declared, stored_range, notes)
        affine = None
        if len(facts.origins) > 1 and facts.axes is not None:
            affine, uneven = volume_affine(facts.origins, facts.axes, shared_spacing(ds, layout.frames))
            facts = replace(facts, uneven=uneven, notes=facts.notes + (uneven,) * bool(uneven))
        return Pixels(
            array=array,
            kind="dicom",
            padding=None if layout.is_float else padding_mask(raw, stored, ds, layout),
            inverted=layout.photometric == "MONOCHROME1",
            spacing_mm=spacing(ds, layout.frames),
            affine=affine,
            facts=facts,
        )


def _color(raw: NDArray[Any], ds: Dataset, layout: Layout, declared: UID, notes: tuple[str, ...]) -> Pixels:
    """Return colour scaled to 0..255; three equal channels are grey."""
    largest = float(layout.stored_range[1])
    if layout.photometric == "PALETTE COLOR":
        with damaged(f"{label('PhotometricInterpretation')} PALETTE COLOR has no readable palette"):
            raw = apply_color_lut(raw, ds)[..., :3]
        largest = float(np.iinfo(raw.dtype).max)
    array: NDArray[np.float32] = raw.astype(np.float32)
    if largest != 255:
        array *= np.float32(255 / largest)
    if is_grey(raw):
        array, notes = np.ascontiguousarray(array[..., 0]), (*notes, EQUAL_CHANNELS)
    facts = read_facts(ds, layout, declared, (0.0, 255.0), notes)
    return Pixels(array=array, kind="dicom", spacing_mm=spacing(ds, layout.frames), facts=facts)
