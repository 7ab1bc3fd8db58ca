"""What a decoder process says, which may be anything: pixels, a refusal, or no reply at all."""

from __future__ import annotations

import json
import os
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medad_serve.errors import InputError
from medad_serve.io import DEFAULT_LIMITS, Facts, LeftOut, Limits, Lut, Pixels
from medad_serve.serving.replies import decode_reply, encode_reply
from medad_serve.spec import Window

SHAPE = (2, 3, 5)
RNG = np.random.default_rng(0)
WHOLE = Pixels(
    RNG.normal(size=SHAPE).astype(np.float32),
    "dicom",
    padding=RNG.integers(0, 2, SHAPE).astype(np.bool_),
    inverted=True,
    spacing_mm=(0.4882812, 0.1),
    affine=RNG.normal(size=(4, 4)),
    labels=RNG.integers(0, 9, SHAPE).astype(np.int32),
    facts=Facts(
        modality="CT",
        windows=((40.0, 80.0), (1e-300, 1 / 3)),
        voi=Lut(-5, RNG.normal(size=7).astype(np.float32), 12),
        bits=12,
        stored_range=(-np.inf, np.nan),
        origins=((0.1, 0.2, 0.3), (0.1, 0.2, 5.3)),
        sources=(7, 0),
        left_out=(LeftOut(3, "of another series"),),
        axes=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
        notes=("1 file left out: \N{GREEK SMALL LETTER ALPHA}",),
    ),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=8,
)


def sent(reply: Pixels | InputError) -> tuple[bytes, list[memoryview]]:
    """A reply as it arrives: its arrays are copies."""
    body, views = encode_reply(reply)
    return body, [memoryview(bytearray(view)) for view in views]


def read(body: bytes, views: list[memoryview], limits: Limits = DEFAULT_LIMITS) -> Pixels | InputError | None:
    """What comes of a reply, None for a ValueError: of anything else a test fails."""
    try:
        found = decode_reply(body, views, limits)
    except ValueError:
        return None
    if isinstance(found, Pixels):
        assert found.array.dtype == np.float32
        assert found.padding is None or (found.padding.shape == found.array.shape and found.padding.dtype == np.bool_)
        assert found.labels is None or (found.labels.shape == found.array.shape[:3] and found.labels.dtype == np.int32)
        assert found.affine is None or (found.affine.shape == (4, 4) and found.affine.dtype == np.float64)
        assert found.array.size <= limits.max_values
        assert len(found.facts.sources) in (0, found.frames)
    else:
        assert found.code in (400, 413, 415, 422, 500)
        assert str(found).isprintable()
    return found


@pytest.mark.parametrize(
    "pixels",
    [
        WHOLE,
        Pixels(np.zeros((1, 4, 4, 3), np.float32), "image", padding=np.ones((1, 4, 4, 3), np.bool_)),
        replace(WHOLE, facts=replace(WHOLE.facts, voi=Window(center=40, width=80, function="SIGMOID")), labels=None),
        Pixels(np.asfortranarray(RNG.normal(size=SHAPE).astype(np.float32)), "nifti"),
    ],
)
def test_pixels_arrive_as_they_were(pixels: Pixels) -> None:
    found = decode_reply(*sent(pixels), DEFAULT_LIMITS)
    assert isinstance(found, Pixels)
    for name in ("array", "padding", "affine", "labels"):
        np.testing.assert_array_equal(getattr(found, name), getattr(pixels, name), strict=True)
    assert (found.kind, found.inverted, found.spacing_mm) == (pixels.kind, pixels.inverted, pixels.spacing_mm)
    assert repr(found.facts) == repr(pixels.facts)  # nan is not equal to itself
    found.array[:] = 0  # as any array of one's own


def test_a_refusal_arrives_as_it_was() -> None:
    found = decode_reply(*sent(InputError(415, "no", "do")), DEFAULT_LIMITS)
    assert isinstance(found, InputError)
    assert found.to_json() == InputError(415, "no", "do").to_json()


def test_a_refusal_of_many_reasons_arrives_cut() -> None:
    found = decode_reply(*sent(InputError(400, "; ".join(map(str, range(1000))), "do")), DEFAULT_LIMITS)
    assert isinstance(found, InputError)
    assert (found.code, found.message[:10], len(found.message)) == (400, "0; 1; 2; 3", 1000)


@given(st.binary(max_size=200), st.lists(st.binary(max_size=64), max_size=3))
def test_bytes_are_no_reply(body: bytes, parts: list[bytes]) -> None:
    assert read(body, [memoryview(bytearray(part)) for part in parts]) is None


@given(st.data())
def test_a_reply_of_other_fields_has_no_other_effect(data: st.DataObject) -> None:
    body, views = sent(data.draw(st.sampled_from([WHOLE, InputError(422, "no", "do")])))
    said: dict[str, Any] = json.loads(body)
    places = [said, said.get("facts", said)]
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from(places))
        key = data.draw(st.sampled_from([*place, "extra"]))
        place[key] = data.draw(st.none() | st.just(place.get(key)) | JSON)
    parts = [*views, memoryview(b"")]
    kept = data.draw(st.just([*range(len(views))]) | st.lists(st.integers(0, len(views)), max_size=6))
    read(json.dumps(said).encode(), [parts[index] for index in kept])


@given(st.lists(st.integers(-1, 2**40), max_size=5), st.integers(0, 400))
def test_a_shape_is_that_of_its_bytes_or_no_shape(shape: list[int], size: int) -> None:
    body, _ = sent(replace(WHOLE, padding=None, affine=None, labels=None, facts=Facts()))
    found = read(json.dumps({**json.loads(body), "shape": shape}).encode(), [memoryview(bytearray(size))])
    assert found is None or (isinstance(found, Pixels) and found.array.shape == tuple(shape))


@pytest.mark.parametrize("limits", [Limits(max_frames=1), Limits(max_pixels=14), Limits(max_values=29)])
def test_no_reply_is_larger_than_an_input_may_be(limits: Limits) -> None:
    assert read(*sent(WHOLE), DEFAULT_LIMITS) is not None
    assert read(*sent(WHOLE), limits) is None


@pytest.mark.parametrize(
    "change",
    [
        {"code": 200},
        {"code": 503},
        {"message": "two\nlines"},
        {"hint": "\x1b[2J"},
        {"message": "x" * 1001},
        {"code": "400"},
    ],
)
def test_a_refusal_that_no_decoder_makes_is_none(change: dict[str, Any]) -> None:
    body, _ = sent(InputError(422, "no", "do"))
    assert read(json.dumps({**json.loads(body), **change}).encode(), []) is None
    assert read(body, [memoryview(b"1")]) is None


@pytest.mark.parametrize(
    "left_out",
    [
        [{"source": -1, "reason": "no"}],
        [{"source": 3, "reason": "no"}],
        [{"source": 0, "reason": "two\nlines"}],
        [{"source": 0, "reason": "x" * 1001}],
        [{"source": 0, "reason": "no"}] * 4,
        [{"source": "0", "reason": "no"}],
    ],
)
def test_a_file_left_out_that_nobody_sent_is_no_reply(left_out: list[dict[str, Any]]) -> None:
    limits = Limits(max_members=3)
    body, views = sent(replace(WHOLE, facts=replace(WHOLE.facts, left_out=())))
    said = json.loads(body)
    said["facts"]["left_out"] = [{"source": 2, "reason": "no"}]
    found = read(json.dumps(said).encode(), views, limits)
    assert isinstance(found, Pixels)
    assert found.facts.left_out == (LeftOut(2, "no"),)
    said["facts"]["left_out"] = left_out
    assert read(json.dumps(said).encode(), views, limits) is None


def test_a_pickle_is_no_reply_and_nothing_of_it_is_run(tmp_path: Any) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.mkdir, (str(tmp_path / "run"),)

    assert read(pickle.dumps(Hostile()), []) is None
    assert not (tmp_path / "run").exists()


def test_what_is_refused_is_not_quoted() -> None:
    with pytest.raises(ValueError, match="other fields") as error:
        decode_reply(b'{"shape": "DOE^JANE"}', [], DEFAULT_LIMITS)
    assert "DOE" not in repr(error.value)
    assert error.value.__cause__ is None
