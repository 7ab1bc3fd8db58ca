"""Guard rails: what a model was not made for is 422 with the reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from medad_serve.errors import InputError
from medad_serve.io import Facts, Pixels
from medad_serve.models import family
from medad_serve.prep import check_input, check_tensor
from medad_serve.spec import InputSpec, PrepSpec


def pixels(spacing: tuple[float, float] | None = None, side: int = 64, **facts: Any) -> Pixels:
    return Pixels(np.zeros((1, side, side), np.float32), "dicom", spacing_mm=spacing, facts=Facts(**facts))


def refusal(image: Pixels, model: str) -> str:
    made = family(model)
    with pytest.raises(InputError) as error:
        check_input(image, made.input, made.prep)
    assert error.value.code == 422
    assert error.value.hint
    return error.value.message


CT = {"modality": "CT", "body_part": "HEAD", "bits": 16, "stored_range": (-1024.0, 3071.0)}
FILM = {"modality": "DX", "body_part": "CHEST", "bits": 12}


@pytest.mark.parametrize(
    ("model", "image"),
    [
        ("ae", pixels((0.45, 0.45), **CT)),
        ("ae", pixels(**{**CT, "bits": 12, "body_part": ""})),
        ("efficientnet_b0", pixels((0.14, 0.14), **FILM)),
        ("efficientnet_b0", pixels(bits=8)),
        ("vqvae", pixels(bits=8)),
        ("vqvae", pixels((0.004, 0.011), modality="OPT", bits=8)),
        ("draem", pixels((0.45, 0.45), **CT)),  # made for whatever its training shows
    ],
)
def test_what_a_model_was_made_for_passes(model: str, image: Pixels) -> None:
    made = family(model)
    check_input(image, made.input, made.prep)


@pytest.mark.parametrize("model", ["ae", "aeu", "vae", "dae"])
def test_a_chest_film_is_no_head(model: str) -> None:
    assert refusal(pixels((0.14, 0.14), **FILM), model) == "the model reads CT, this is a modality DX"
    assert "Body Part Examined" in refusal(pixels(**{**CT, "body_part": "CHEST"}), model)


def test_a_head_is_no_chest_film_and_no_eye() -> None:
    assert "reads CR or DX" in refusal(pixels(**CT), "efficientnet_b0")
    assert "reads OPT" in refusal(pixels(**CT), "vqvae")


@pytest.mark.parametrize("model", ["vqvae3d", "fracture"])
def test_an_mr_of_the_spine_is_no_ct_of_it(model: str) -> None:
    assert "reads CT" in refusal(pixels(modality="MR"), model)


def test_a_picture_of_a_ct_is_refused_by_its_bits() -> None:
    assert "8-bit values, the model reads 10 to 32" in refusal(pixels(**{**CT, "bits": 8}), "ae")


@pytest.mark.parametrize("spacing", [(0.02, 0.02), (0.45, 40.0)])
def test_pixels_of_an_impossible_size_are_refused(spacing: tuple[float, float]) -> None:
    assert "mm apart, the model reads 0.15 to 4 mm" in refusal(pixels(spacing, **CT), "ae")


def test_a_localiser_is_refused_by_every_model() -> None:
    for model in ("ae", "draem"):
        assert "localiser" in refusal(pixels((0.45, 0.45), **CT, localizer=True), model)


def test_unsigned_ct_values_without_a_rescale_are_no_hu() -> None:
    raw = {**CT, "stored_range": (0.0, 4095.0), "rescaled": False}
    assert "Rescale Intercept" in refusal(pixels(**raw), "ae")
    check_input(pixels(**raw), InputSpec(), PrepSpec())  # without a window in HU it is the stored range that counts
    check_input(pixels(**{**raw, "rescaled": True}), family("ae").input, family("ae").prep)


def test_bounds_belong_to_the_range() -> None:
    spec = InputSpec(bits=(8, 12), spacing_mm=(0.5, 1.0))
    for bits, spacing in ((8, (0.5, 1.0)), (12, (1.0, 0.5)), (None, None)):
        check_input(pixels(spacing, modality="CT", bits=bits), spec, PrepSpec())
    for bits, spacing in ((7, None), (13, None), (8, (0.49, 1)), (8, (1, 1.01))):
        with pytest.raises(InputError):
            check_input(pixels(spacing, modality="CT", bits=bits), spec, PrepSpec())


def test_bits_are_those_of_a_modality_and_plain_pictures_have_none() -> None:
    check_input(pixels(bits=8), InputSpec(bits=(10, 32)), PrepSpec())


def test_a_tensor_must_have_the_graphs_shape() -> None:
    check_tensor((5, 1, 64, 64), (1, 64, 64))
    for shape in ((1, 64, 64), (5, 1, 64, 32), (0, 1, 64, 64), (1, 5, 1, 64, 64)):
        with pytest.raises(InputError, match="the model reads Nx1x64x64") as error:
            check_tensor(shape, (1, 64, 64))
        assert error.value.code == 422
