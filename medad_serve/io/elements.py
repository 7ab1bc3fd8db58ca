"""The elements of a DICOM file that are of interest, through pydicom; those with names are skipped over."""

from __future__ import annotations

import zlib
from io import BytesIO
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from medad_serve.errors import InputError
from medad_serve.io.imagecodecs_plugin import DECODER_DEPENDENCIES
from medad_serve.io.layout import damaged
from medad_serve.io.limits import Limits
from medad_serve.io.tags import TAGS

_TAGS: list[Any] = list(TAGS.values())
_VRS = frozenset(
    b"AE AS AT CS DA DS DT FL FD IS LO LT OB OD OF OL OW PN SH SL SQ SS ST TM UC UI UL UN UR US UT".split()
)
_META_VRS = frozenset((b"UL", b"UI", b"SH", b"AE", b"UR"))
"""Of the file meta information (PS3.10 7.1), beside OB and UN whose length has 32 bits."""
_ORDERS: dict[str, tuple[bool, bool]] = {
    ImplicitVRLittleEndian: (True, True),
    ExplicitVRBigEndian: (False, False),
    **dict.fromkeys((ExplicitVRLittleEndian, *DECODER_DEPENDENCIES), (False, True)),
}
"""Whether VRs are implicit and whether bytes are little-endian, of the syntaxes that are read here (PS3.5 annex A)."""
_COMMAND = b"\0\0"
"""The group of commands, which may come before the others."""
_SEND_WHOLE = "Send a whole DICOM file"


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


def read_elements(data: bytes, limits: Limits) -> tuple[Dataset, UID]:
    """Return the elements and the declared transfer syntax; a deflated file has been inflated.

    Raises:
        InputError: 400 damaged or cut short, 413 inflates beyond the limits, 415 unknown transfer syntax.
    """
    with damaged("the DICOM file cannot be read", _SEND_WHOLE):
        end, syntax = _meta(data)
        # pydicom inflates without bound, so deflated files are inflated here; a false alarm costs little
        if data.find(DeflatedExplicitVRLittleEndian.encode(), 0, end) >= 0:
            found = _read_deflated(data, limits)
            if found is not None:
                return found, DeflatedExplicitVRLittleEndian
        order = _ORDERS.get(syntax)
        if order is None or data[end : end + 2] in (_COMMAND, b"") or _ends_in_meta(data):
            return _read_any(data)
        # what dcmread would come to: it builds three data sets more, in twice the time
        file = BytesIO(data)
        file.seek(end)
        return read_dataset(file, *order, specific_tags=_TAGS), UID(syntax)


def _read_any(data: bytes) -> tuple[Dataset, UID]:
    """Read whatever pydicom makes sense of: without meta information, or with an unusual one."""
    ds = dcmread(BytesIO(data), force=data[128:132] != b"DICM", specific_tags=_TAGS)
    if _ends_in_meta(data):
        raise InputError(400, "the DICOM file is cut short", _SEND_WHOLE)
    syntax = ds.file_meta.get("TransferSyntaxUID")
    if not syntax:  # without it pydicom has guessed from the first element
        implicit, little = ds.original_encoding
        plain = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        syntax = ImplicitVRLittleEndian if implicit else plain
    if not UID(syntax).is_transfer_syntax:
        fault = "(0002,0010) Transfer Syntax UID is not supported: unknown"
        raise InputError(415, fault, "Export it as Explicit VR Little Endian")
    return ds, UID(syntax)


def _ends_in_meta(data: bytes) -> bool:
    """Whether nothing follows the file meta information, by (0002,0000) File Meta Information Group Length."""
    if data[128:140] != b"DICM\x02\0\0\0UL\x04\0":
        return False
    return len(data) <= 144 + int.from_bytes(data[140:144], "little")


def _meta(data: bytes) -> tuple[int, str]:
    """Return where the file meta information (group 0002) ends and the transfer syntax that it names.

    Where it is unclear they are the end of data and ``""``.
    """
    at, syntax = 132 if data[128:132] == b"DICM" else 0, ""
    while data[at : at + 2] == b"\x02\0":
        vr = data[at + 4 : at + 6]
        long = vr in (b"OB", b"UN")
        if not long and vr not in _META_VRS:
            return len(data), ""
        head, length = (12, data[at + 8 : at + 12]) if long else (8, data[at + 6 : at + 8])
        end = at + head + int.from_bytes(length, "little")
        if data[at + 2 : at + 4] == b"\x10\0":
            syntax = data[at + head : end].rstrip(b"\0 ").decode("latin-1")
        at = end
    return at, syntax


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
    return read_dataset(BytesIO(plain), False, True, specific_tags=_TAGS)
