from __future__ import annotations

import numpy as np
import pytest

from medad_serve.errors import InputError
from medad_serve.io import Facts, Pixels
from medad_serve.prep import check_input
from medad_serve.spec import InputSpec, PrepSpec


def test_slices_with_a_gap_are_frames_but_no_volume() -> None:
    pixels = Pixels(np.zeros((8, 32, 32), np.float32), kind="dicom", facts=Facts(uneven="2 slices are missing"))
    check_input(pixels, InputSpec(), PrepSpec(size=(32, 32)))
    with pytest.raises(InputError, match="2 slices are missing") as error:
        check_input(pixels, InputSpec(), PrepSpec(size=(8, 32, 32)))
    assert error.value.code == 422
