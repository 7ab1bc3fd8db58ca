"""Every file that the benchmark of decoding is made on holds what it says, and stock pipelines end where ours does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medad_serve.bench.encodings import DEPTH, SYNTAXES, Syntax, encoded_dicom, encoded_files
from medad_serve.bench.stock import monai_pipeline, pydicom_pipeline
from medad_serve.io import decode
from medad_serve.prep import prepare
from medad_serve.spec import PrepSpec, Window

LOSSY = {"JPEG baseline": 3, "JPEG extended": 8}
BRAIN = Window(center=40, width=80)


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.name)
def test_a_slice_is_stored_in_its_syntax_without_loss(syntax: Syntax) -> None:
    for bits in syntax.bits:
        encoded = encoded_dicom(syntax, 64, bits)
        pixels = decode(encoded.data)
        slope = 2 ** max(12 - bits, 0)
        assert pixels.facts.transfer_syntax == syntax.uid
        np.testing.assert_allclose(
            pixels.array[0],
            encoded.stored.astype(np.float32) * slope - 1024,
            rtol=0,
            atol=LOSSY.get(syntax.name, 0) * slope,
        )


def test_files_that_are_no_dicom_hold_their_values() -> None:
    made = list(encoded_files(128))
    assert {each.encoding for each in made} == {"PNG", "JPEG", ".npy", ".nii", ".nii.gz"}
    for each in made:
        found = decode(each.data).array
        assert found.shape[0] == (DEPTH if each.stored.ndim == 3 else 1)
        np.testing.assert_allclose(
            found.reshape(each.stored.shape), each.stored, atol=4 if each.encoding == "JPEG" else 0
        )


def test_sixteen_bits_have_a_sign_and_padding_beyond_a_circle() -> None:
    pixels = decode(encoded_dicom(SYNTAXES[0], 64, 16).data)
    assert pixels.padding is not None
    assert 0.2 < pixels.padding.mean() < 0.23  # 1 - pi / 4
    assert (pixels.array[pixels.padding] == -3024).all()


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_stock_pipelines_end_at_our_tensor(tmp_path: Path, bits: int) -> None:
    path = tmp_path / "slice.dcm"
    data = encoded_dicom(SYNTAXES[0], 256, bits).data
    path.write_bytes(data)
    ours = prepare(decode(data), PrepSpec(window=BRAIN, size=(64, 64))).tensor[0, 0]
    np.testing.assert_allclose(pydicom_pipeline(data, "", (64, 64)), ours, atol=1e-6)
    monai = np.asarray(monai_pipeline(path, (64, 64), BRAIN)())[0]
    np.testing.assert_allclose(monai.T, ours, atol=1e-6)
