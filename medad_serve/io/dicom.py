"""DICOM to rescaled pixels, through pydicom."""

from __future__ import annotations

import zlib
from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import read_dataset
from pydicom.pixels.processing import apply_color_lut
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from medad_serve.errors import InputError
from medad_serve.io.facts import read_facts, shared_spacing, spacing
from medad_serve.io.grid import volume_affine
from medad_serve.io.layout import GREY, Layout, damaged, read_layout
from medad_serve.io.limits import Limits
from medad_serve.io.pixels import Pixels, is_grey
from medad_serve.io.quiet import quiet
from medad_serve.io.rescale import padding_mask, rescale
from medad_serve.io.stored import correct_unused_bits, read_stored
from medad_serve.io.tags import TAGS, label

_TAGS: list[Any] = list(TAGS.values())
_VRS = frozenset(
    b"AE AS AT CS DA DS DT FL FD IS LO LT OB OD OF OL OW PN SH SL SQ SS ST TM UC UI UL UN UR US UT".split()
)
EQUAL_CHANNELS = "colour with three equal channels, read as grey of 0..255"


def is_dicom(data: bytes) -> bool:
    """Whether the bytes look like DICOM: the PS3.10 prefix, or a plausible first element without preamble."""
    if data[128:132] == b"DICM":
        return True
    little, big = int.from_bytes(data[:2], "little"), int.from_bytes(data[:2], "big")
    if little not in (2, 8) and big != 8:
        return False
    if data[4:6] in _VRS:
        return True
    return little in (2, 8) and len(data) >= 8 and int.from_bytes(data[4:8], "little") <= len(data) - 8


def decode_dicom(data: bytes, limits: Limits) -> Pixels:
    """Decode one DICOM file, with or without the PS3.10 preamble; frames keep the order of the file.

    Raises:
        InputError: 400 damaged, 413 over the limits, 415 encoding not supported, 422 no usable pixels.
    """
    with quiet():
        ds, declared = _read(data, limits)
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


def _read(data: bytes, limits: Limits) -> tuple[Dataset, UID]:
    """Return the elements of interest and the transfer syntax; elements with names are skipped over."""
    hint = "Send a whole DICOM file"
    with damaged("the DICOM file cannot be read", hint):
        # pydicom inflates without bound, so deflated files are inflated here; a false alarm costs little
        if data.find(DeflatedExplicitVRLittleEndian.encode(), 0, _meta_end(data)) >= 0:
            found = _read_deflated(data, limits)
            if found is not None:
                return found, DeflatedExplicitVRLittleEndian
        ds = dcmread(BytesIO(data), force=data[128:132] != b"DICM", specific_tags=_TAGS)
        if _ends_in_meta(data):
            raise InputError(400, "the DICOM file is cut short", hint)
        syntax = ds.file_meta.get("TransferSyntaxUID")
        if not syntax:  # without it pydicom has guessed from the first element
            implicit, little = ds.original_encoding
            plain = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
            syntax = ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else plain
        if not UID(syntax).is_transfer_syntax:
            fault = "(0002,0010) Transfer Syntax UID is not supported: unknown"
            raise InputError(415, fault, "Export it as Explicit VR Little Endian")
        return ds, UID(syntax)


def _ends_in_meta(data: bytes) -> bool:
    """Whether nothing follows the file meta information, by (0002,0000) File Meta Information Group Length."""
    if data[128:140] != b"DICM\x02\0\0\0UL\x04\0":
        return False
    return len(data) <= 144 + int.from_bytes(data[140:144], "little")


def _meta_end(data: bytes) -> int:
    """Return where the file meta information (group 0002) ends, or the end of data where that is unclear."""
    at = 132 if data[128:132] == b"DICM" else 0
    while data[at : at + 2] == b"\x02\0":
        vr = data[at + 4 : at + 6]
        long = vr in (b"OB", b"UN")
        if not long and vr not in (b"UL", b"UI", b"SH", b"AE", b"UR"):  # the VRs of PS3.10 7.1
            return len(data)
        head, length = (12, data[at + 8 : at + 12]) if long else (8, data[at + 6 : at + 8])
        at += head + int.from_bytes(length, "little")
    return at


def _read_deflated(data: bytes, limits: Limits) -> Dataset | None:
    """Read a file in the Deflated syntax (PS3.5 A.5), or return None where it is in another."""
    file = BytesIO(data)
    file.seek(132 if data[128:132] == b"DICM" else 0)
    meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return None
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    plain = inflater.decompress(data[file.tell() :], limits.max_bytes)
    if inflater.unconsumed_tail:
        raise InputError(413, f"the file inflates to more than {limits.max_bytes} bytes", "Send it smaller")
    if not inflater.eof:
        raise InputError(400, "the deflated DICOM file ends early", "The file is cut short: send it whole")
    ds = read_dataset(BytesIO(plain), False, True, specific_tags=_TAGS)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.set_original_encoding(False, True)
    return ds


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
