"""What TorchServe hands to a handler, read: a row and its headers become one request; an answer becomes bytes.

TorchServe gives the whole body as the field ``body``, and the parts of multipart/form-data each under its name:
of parts that share one only the last arrives, and file names are lost. Headers keep the case they were sent in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, get_args

from medad_serve.errors import InputError
from medad_serve.io import DEFAULT_LIMITS, Limits
from medad_serve.predictor import HeatmapFormat, Options, Result, Source
from medad_serve.serving.oip import OipError, inference_answer, read_inference

FORMATS: dict[str, HeatmapFormat] = {name: name for name in get_args(HeatmapFormat)}
OPTION = "x-medad-"
"""Begins the names of headers and multipart fields that are no files."""
JSON_LENGTH = "inference-header-content-length"
_NO_FILE = "Send it as the body with Content-Type: application/octet-stream, e.g. curl -T FILE"
_OWN_NAMES = "Give each part a name of its own, e.g. curl -F 1=@a.dcm -F 2=@b.dcm, or send one ZIP"
_HALVES = "surrogatepass"
"""Half characters, which JSON can hold and UTF-8 cannot."""
_PART_HEADERS = 512
"""Bytes that the headers of a part may take beside its name; file names have up to 255."""


@dataclass
class Request:
    """One request, as the predictor takes it."""

    source: Source
    """One file; the files of one series; or a prepared tensor (N, C, *S)."""
    options: Options
    protocol: Literal["medad", "oip"] = "medad"
    id: str | None = None
    """Of an infer request, returned with its answer."""
    outputs: tuple[str, ...] = ()
    """Asked for by an infer request; empty for all."""

    def take(self) -> Source:
        """Return the source and keep it no longer: what is sent is large, and decoded once."""
        source, self.source = self.source, b""
        return source


def read_request(row: dict[str, Any], headers: dict[str, Any], limits: Limits = DEFAULT_LIMITS) -> Request:
    """Read one row of a batch and the headers of its request.

    Raises:
        InputError: 400 no file, or an unknown option; 413 over the limits; of JSON as :func:`read_inference`.
    """
    # TorchServe lists the content type of each part among the headers, as a mapping
    sent = {name.lower(): value for name, value in headers.items() if not isinstance(value, dict)}
    fields = {name: value for name, value in row.items() if not name.lower().startswith(OPTION)}
    options = _options({name.lower(): value for name, value in row.items()} | sent)
    kind, boundary = _content_type(sent)
    if kind == "application/x-www-form-urlencoded":  # the body has been taken apart as a form
        raise InputError(400, "the request brought a form in place of a file", _NO_FILE)
    if kind == "multipart/form-data":
        _check_parts(fields, sent, boundary)
    elif "body" in fields:
        body = fields["body"]
        if isinstance(body, dict) or JSON_LENGTH in sent or _begins_as_object(body):
            return _infer_request(body, sent.get(JSON_LENGTH), options, limits)
        if kind in ("multipart/related", "multipart/mixed") and boundary:  # as of DICOMweb STOW-RS
            whole = body if isinstance(body, bytearray) else _bytes(body)
            return Request(_source(split_parts(whole, boundary.encode("utf-8", _HALVES)), limits), options)
    return Request(_source(map(_bytes, fields.values()), limits), options)


def _source(files: Iterable[bytes], limits: Limits) -> bytes | tuple[bytes, ...]:
    """Return one file, or several; no more are looked for than there may be."""
    found = tuple(islice(files, limits.max_members + 1))
    if not found:
        raise InputError(400, "the request brought no file", _NO_FILE)
    if len(found) > limits.max_members:
        raise InputError(413, f"the request has more than {limits.max_members} parts", "Send fewer files")
    return found[0] if len(found) == 1 else found


def _bytes(value: object) -> bytes:
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    if isinstance(value, str):
        return value.encode("utf-8", _HALVES)
    raise InputError(415, "JSON is no file", "Send the file itself with Content-Type: application/octet-stream")


def _begins_as_object(body: object) -> bool:
    """Whether a body is a JSON object by its beginning: no image file begins like one."""
    head = body[:64] if isinstance(body, bytes | bytearray | str) else b""
    text = head.encode("utf-8", _HALVES) if isinstance(head, str) else bytes(head)
    return text.lstrip(b" \t\r\n").startswith(b"{")


def _infer_request(body: Any, json_length: Any, options: Options, limits: Limits) -> Request:
    length = None
    if json_length is not None:
        if not re.fullmatch(r"\d{1,12}", _text(json_length)):
            raise OipError(400, "Inference-Header-Content-Length is no number", "Send the length of the JSON")
        length = int(_text(json_length))
    if options.heatmap != "none":
        raise OipError(422, "a prepared tensor has no pixels to lay a heatmap on", "Send the source file itself")
    found = read_inference(body if isinstance(body, dict) else _bytes(body), length, limits)
    return Request(found.tensor, options, "oip", found.id, found.outputs)


def _content_type(sent: dict[str, Any]) -> tuple[str, str]:
    """Return the media type and its boundary, ``""`` where there is none."""
    kind, _, rest = _text(sent.get("content-type", "")).partition(";")
    found = re.search(r'boundary\s*=\s*(?:"([^"]{1,70})"|([^\s;"]{1,70}))', rest, re.IGNORECASE)
    return kind.strip().lower(), (found[1] or found[2]) if found else ""


def _check_parts(fields: dict[str, Any], sent: dict[str, Any], boundary: str) -> None:
    """Refuse a form from which parts were lost: TorchServe keeps the last of those that share a name.

    Told by its length, so that a part lost is noticed where it is larger than what headers may take.
    """
    length = _text(sent.get("content-length", ""))
    if not length.isdecimal():
        return
    arrived = sum(len(value) for value in fields.values() if isinstance(value, bytes | bytearray | str))
    framing = (len(fields) + 8) * (_PART_HEADERS + len(boundary))  # 8: options, preamble and end
    if int(length) > arrived + framing:
        raise InputError(400, "parts of the form share one name: all but the last are lost", _OWN_NAMES)


def split_parts(body: bytes | bytearray, boundary: bytes) -> Iterator[bytes]:
    """Yield the content of each part of a multipart body (RFC 2046 5.1), in its order.

    Found by `find`, and each copied once: splitting the 15 MB of a series takes eight times as long.
    """
    delimiter = b"\r\n--" + boundary
    at = 0 if body.startswith(delimiter[2:]) else body.find(delimiter) + 2
    while at != 1:  # not found
        start = at + len(delimiter) - 2
        if body.startswith(b"--", start):
            break
        following = body.find(delimiter, start)
        end = len(body) if following < 0 else following
        head = body.find(b"\r\n\r\n", start, end)
        if head < 0:
            raise InputError(400, "a part of the multipart body has no end of its headers", "Send it again, whole")
        with memoryview(body) as view:
            part = bytes(view[head + 4 : end])
        yield part
        at = following + 2


def _options(found: dict[str, Any]) -> Options:
    """Read X-Medad-Heatmap and X-Medad-Policy, by lower-case name."""
    heatmap = FORMATS.get(_text(found.get("x-medad-heatmap", "")) or "none")
    if heatmap is None:
        raise InputError(400, "X-Medad-Heatmap asks for an unknown format", f"Choose one of: {', '.join(FORMATS)}")
    return Options(heatmap=heatmap, policy=_text(found.get("x-medad-policy", "")) or None)


def _text(value: object) -> str:
    raw = value.decode("utf-8", "replace") if isinstance(value, bytes | bytearray) else str(value)
    return raw.strip()


def encode_answer(request: Request | None, answer: Result | InputError) -> bytes:
    """Write an answer as JSON in the protocol of its request; ``request`` is None where it could not be read.

    Raises ValueError for a number that JSON cannot hold.
    """
    if request is not None and request.protocol == "oip":
        if isinstance(answer, InputError):
            body = OipError(answer.code, answer.message, answer.hint).to_json()
        else:
            body = inference_answer(answer, request.id, request.outputs)
    else:
        body = answer.to_json()
    return json.dumps(body, allow_nan=False).encode()
