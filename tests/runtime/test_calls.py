from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from medad_serve.runtime.calls import MIXED, spans


@given(st.integers(0, 200), st.integers(1, 40))
def test_spans_are_every_item_once_and_in_order_in_calls_of_known_sizes(items: int, most: int) -> None:
    parts = list(spans(items, most))
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(items))
    sizes = [part.stop - part.start for part in parts]
    assert set(sizes) <= {size for size in MIXED if size <= most}
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) <= items // max(size for size in MIXED if size <= most) + len(MIXED) - 1
