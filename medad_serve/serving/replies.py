"""How a decoder process tells what it has decoded: JSON of fixed fields, and the bytes of arrays of fixed types.

The other side may have been taken over by a hostile file. So nothing that it sends chooses a type: every field is
checked by pydantic, every array is one of five with a type of its own, and its shape is held against its bytes and
the limits of inputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from medad_serve.errors import InputError
from medad_serve.io import Facts, LeftOut, Limits, Lut, Pixels
from medad_serve.io.pixels import Kind

_Part = Literal["padding", "affine", "labels", "lut"]
_TYPES: dict[_Part, type[np.generic]] = {
    "padding": np.uint8,  # eight to a byte: quicker than to send them whole, and nothing but yes and no comes out
    "affine": np.float64,
    "labels": np.int32,
    "lut": np.float32,
}
_CODES = (400, 413, 415, 422, 500)
_LONGEST_TEXT = 1000
_LUT_ENTRIES = 2**16
"""As many as the 16 bits of a LUT Descriptor can count (PS3.3 C.11.1.1)."""


class _Strict(BaseModel):
    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, arbitrary_types_allowed=True, ser_json_inf_nan="constants"
    )


class _Table(_Strict):
    """A lookup table but for its entries."""

    first: Annotated[int, Field(ge=-(2**31), lt=2**31)]
    bits: Annotated[int, Field(ge=8, le=16)]


class _Decoded(_Strict):
    """Pixels but for their arrays, of which the first is that of the pixels and ``parts`` names the others."""

    shape: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=3, max_length=4)]
    parts: tuple[_Part, ...]
    kind: Kind
    inverted: bool
    spacing_mm: tuple[float, float] | None
    facts: Facts
    table: _Table | None
    """Of ``facts.voi``, where that is a table."""


class _Refused(_Strict):
    code: int
    message: Annotated[str, Field(max_length=_LONGEST_TEXT)]
    hint: Annotated[str, Field(max_length=_LONGEST_TEXT)]


_REPLY: TypeAdapter[_Decoded | _Refused] = TypeAdapter(
    Annotated[_Decoded | _Refused, Field(union_mode="left_to_right")]
)


def encode_reply(reply: Pixels | InputError) -> tuple[bytes, list[memoryview]]:
    """Return what was decoded, or why it was not, as a short body and the bytes of arrays."""
    if isinstance(reply, InputError):
        message = reply.message[:_LONGEST_TEXT]  # of a series it names every reason
        refused = _Refused(code=int(reply.code), message=message, hint=reply.hint)
        return refused.model_dump_json().encode(), []
    lut = reply.facts.voi if isinstance(reply.facts.voi, Lut) else None
    given: dict[_Part, NDArray[Any] | None] = {
        "padding": None if reply.padding is None else np.packbits(reply.padding),
        "affine": reply.affine,
        "labels": reply.labels,
        "lut": None if lut is None else lut.entries,
    }
    arrays = {name: array for name, array in given.items() if array is not None}
    head = _Decoded(
        shape=reply.array.shape,
        parts=tuple(arrays),
        kind=reply.kind,
        inverted=reply.inverted,
        spacing_mm=reply.spacing_mm,
        facts=reply.facts if lut is None else replace(reply.facts, voi=None),
        table=None if lut is None else _Table(first=lut.first, bits=lut.bits),
    )
    views = [_bytes(reply.array, np.float32), *(_bytes(array, _TYPES[name]) for name, array in arrays.items())]
    return head.model_dump_json().encode(), views


def decode_reply(body: bytes, views: Sequence[memoryview], limits: Limits) -> Pixels | InputError:
    """Return what :func:`encode_reply` was given; the arrays lie in ``views``.

    Raises ValueError for anything that it cannot have made of an input within ``limits``.
    """
    try:
        head = _REPLY.validate_json(body)
    except ValidationError:  # it would quote the body
        raise ValueError("the reply has other fields or values than replies have") from None
    if isinstance(head, _Refused):
        if views or head.code not in _CODES or not (head.message + head.hint).isprintable():
            raise ValueError("the refusal is none that a decoder makes")
        return InputError(head.code, head.message, head.hint)
    _check_shape(head.shape, limits)
    if len(set(head.parts)) != len(head.parts) or len(views) != 1 + len(head.parts):
        raise ValueError("the reply holds other arrays than it names")
    array = _array(views[0], np.float32, head.shape)
    found = {
        name: _array(view, _TYPES[name], _shape(name, head.shape, view))
        for name, view in zip(head.parts, views[1:], strict=True)
    }
    if "padding" in found:
        found["padding"] = np.unpackbits(found["padding"], count=array.size).view(np.bool_).reshape(array.shape)
    facts, entries = head.facts, found.pop("lut", None)
    if len(facts.sources) not in (0, len(array)):
        raise ValueError("the reply names other files than frames")
    if len(facts.left_out) > limits.max_members or not all(_is_told(each, limits) for each in facts.left_out):
        raise ValueError("the reply leaves out files that nobody sent")
    if (head.table is None) != (entries is None) or (head.table is not None and facts.voi is not None):
        raise ValueError("the reply holds half a lookup table")
    if head.table is not None and entries is not None:
        facts = replace(facts, voi=Lut(head.table.first, entries, head.table.bits))
    return Pixels(array, head.kind, inverted=head.inverted, spacing_mm=head.spacing_mm, facts=facts, **found)


def _is_told(file: LeftOut, limits: Limits) -> bool:
    return 0 <= file.source < limits.max_members and len(file.reason) <= _LONGEST_TEXT and file.reason.isprintable()


def _bytes(array: NDArray[Any], kind: type[np.generic]) -> memoryview:
    return np.ascontiguousarray(array, kind).reshape(-1).view(np.uint8).data


def _check_shape(shape: tuple[int, ...], limits: Limits) -> None:
    frames, rows, columns, *channels = shape
    if (
        frames > limits.max_frames
        or rows * columns > limits.max_pixels
        or math.prod(shape) > limits.max_values
        or channels not in ([], [3])
    ):
        raise ValueError("the reply has a shape that no input within the limits has")


def _shape(name: _Part, pixels: tuple[int, ...], view: memoryview) -> tuple[int, ...]:
    """Return the shape in which an array is sent beside pixels of a shape; of a table its bytes tell."""
    if name == "affine":
        return 4, 4
    if name == "lut":
        return (min(view.nbytes // 4, _LUT_ENTRIES),)
    return (-(-math.prod(pixels) // 8),) if name == "padding" else pixels[:3]


def _array(view: memoryview, kind: type[np.generic], shape: tuple[int, ...]) -> NDArray[Any]:
    if not view.nbytes or view.nbytes != math.prod(shape) * np.dtype(kind).itemsize:
        raise ValueError("an array of the reply has other bytes than its shape says")
    return np.frombuffer(view, kind).reshape(shape)
