from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from medad_serve.io import decode
from medad_serve.prep import display
from medad_serve.prep.foreground import foreground_box
from medad_serve.spec import Foreground, Window

BARE = Foreground(margin=0)


def _frame(height: int = 512, width: int = 512) -> np.ndarray:
    return np.zeros((height, width), np.float32)


def _head(image: np.ndarray, center: tuple[int, int], radii: tuple[int, int], brain: float = 0.4) -> np.ndarray:
    """Draw a skull around a brain; ``center`` is (row, column), ``radii`` (vertical, horizontal)."""
    for shrink, value in ((0, 1.0), (20, brain)):
        cv2.ellipse(image, center[::-1], (radii[1] - shrink, radii[0] - shrink), 0, 0, 360, value, -1)
    return image


def _is_near(found: tuple[int, int, int, int], expected: tuple[int, int, int, int], by: int = 4) -> bool:
    return max(abs(a - b) for a, b in zip(found, expected, strict=True)) <= by


def test_a_head_gets_the_square_around_it() -> None:
    image = _head(_frame(), (240, 260), (180, 140))
    assert _is_near(foreground_box(image, BARE), (60, 80, 361, 361))


def test_margin_is_added_on_every_side() -> None:
    image = _head(_frame(), (256, 256), (150, 100))
    assert _is_near(foreground_box(image, Foreground(margin=0.1)), (76, 76, 361, 361), by=6)


@pytest.mark.parametrize("brain", [0.0, 0.4])
def test_table_holder_and_tubes_do_not_count(brain: float) -> None:
    image = _head(_frame(), (230, 250), (170, 130), brain)
    cv2.ellipse(image, (256, 200), (240, 270), 0, 20, 160, 0.9, 6)  # a table's shell, wider than the head
    cv2.ellipse(image, (250, 230), (150, 190), 0, 30, 150, 0.3, 4)  # a head holder
    cv2.line(image, (380, 230), (500, 100), 0.8, 5)  # a tube that touches the head
    assert _is_near(foreground_box(image, BARE), (60, 80, 341, 341))


def test_noise_in_air_does_not_count() -> None:
    image = _head(_frame(), (256, 256), (150, 120))
    specks = np.random.default_rng(0).random(image.shape) < 0.002
    image[specks] = 1
    assert _is_near(foreground_box(image, BARE), (106, 106, 301, 301))


def test_a_skull_around_a_brain_below_the_threshold_counts_whole() -> None:
    image = _head(_frame(), (200, 256), (120, 120), brain=0.0)
    cv2.rectangle(image, (20, 400), (490, 430), 1.0, -1)  # more bright pixels than the ring's
    assert _is_near(foreground_box(image, BARE), (80, 136, 241, 241))


def test_a_head_at_the_border_keeps_a_square_within_the_image() -> None:
    image = _head(_frame(), (140, 100), (180, 140))
    top, left, height, width = foreground_box(image, BARE)
    assert (top, left) == (0, 0)
    assert height == width
    assert abs(height - 320) <= 4


@pytest.mark.parametrize(("height", "width"), [(512, 300), (300, 512)])
def test_a_frame_narrower_than_the_square_is_taken_to_its_edges(height: int, width: int) -> None:
    image = _head(_frame(height, width), (height // 2, width // 2), (height // 2 - 20, width // 2 - 20))
    top, left, high, wide = foreground_box(image, Foreground(margin=0.05))
    assert min(height, width) == min(high, wide)
    assert 0 <= top <= top + high <= height
    assert 0 <= left <= left + wide <= width


@pytest.mark.parametrize("value", [0.0, 1.0, np.nan])
def test_an_image_without_an_object_is_taken_whole(value: float) -> None:
    assert foreground_box(np.full((40, 60), value, np.float32), BARE) == (0, 0, 40, 60)


def test_an_object_thinner_than_what_is_taken_off_is_still_found() -> None:
    image = _frame()
    image[100:103, 200:400] = 1
    top, left, height, width = foreground_box(image, BARE)
    assert top <= 100 <= 103 <= top + height
    assert abs(left - 200) <= 4
    assert abs(width - 200) <= 4


@pytest.mark.parametrize("size", [16, 64, 300, 1500])
def test_the_box_scales_with_the_image(size: int) -> None:
    image = _frame(size, size)
    image[size // 4 : 3 * size // 4, size // 4 : 3 * size // 4] = 0.5
    expected = (size // 4, size // 4, size // 2, size // 2)
    assert _is_near(foreground_box(image, BARE), expected, by=2 * -(-size // 256))


def test_the_box_holds_the_skull_on_every_real_slice(real_data: Callable[[str], Path]) -> None:
    files = sorted(real_data("head_ct_ge_series").glob("*.dcm"))
    assert len(files) == 28
    for file in files:
        pixels = decode(file.read_bytes())
        top, left, height, width = foreground_box(display(pixels, Window(center=40, width=80))[0], Foreground())
        bone = (pixels.array[0] > 300).astype(np.uint8)
        _, _, extents, _ = cv2.connectedComponentsWithStats(bone)
        x, y, wide, high, _ = max(extents[1:].tolist(), key=lambda e: e[4])
        assert left <= x
        assert x + wide <= left + width, file.name
        assert top <= y
        assert y + high <= top + height, file.name
        assert height <= 420  # of 512: the table is wider
