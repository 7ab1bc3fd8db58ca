"""Every file in the pydicom wheel: equal to pydicom's own reading through other codecs, or a named error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.pixels import apply_color_lut, apply_modality_lut, get_decoder
from pydicom.uid import JPEG2000TransferSyntaxes, JPEGLSTransferSyntaxes, JPEGTransferSyntaxes

from medad_serve.errors import InputError
from medad_serve.io import decode

ROOT = Path(pydicom.__file__).parent / "data" / "test_files"
FILES = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if path.is_file())

NO_PIXELS = "holds no (7FE0,0010) Pixel Data"
REFUSED = {
    # damaged on purpose
    "MR_truncated.dcm": (400, "(7FE0,0010) Pixel Data is shorter"),
    "badVR.dcm": (400, "(0028,0008) Number of Frames is not a number"),
    "JPEG2000-embedded-sequence-delimiter.dcm": (400, "a compressed frame's own size contradicts"),
    # pixel data without the tags that describe it
    "meta_missing_tsyntax.dcm": (400, "(0028,0100) Bits Allocated is missing"),
    "nested_priv_SQ.dcm": (400, "(0028,0100) Bits Allocated is missing"),
    # no DICOM
    "no_meta.dcm": (400, "no image file"),  # a bare item of a sequence, starts with group 3006
    "crayons.icc": (400, "no image file"),
    "zipMR.gz": (415, "gzip of anything but NIfTI is not supported"),
    **dict.fromkeys(
        [f for f in FILES if Path(f).name in ("README", "README.txt") or f.endswith((".json", ".dump"))],
        (400, "the input is text"),
    ),
    # DICOM without an image: directories, reports, plans, structures, waveforms
    **dict.fromkeys(
        [f for f in FILES if Path(f).name.startswith(("DICOMDIR", "IM0000", "reportsi", "rtplan.d", "rtplan_"))],
        (422, NO_PIXELS),
    ),
    **dict.fromkeys(
        [
            "ExplVR_BigEndNoMeta.dcm",
            "ExplVR_LitEndNoMeta.dcm",
            "UN_sequence.dcm",
            "empty_charset_LEI.dcm",
            "no_meta_group_length.dcm",
            "priv_SQ.dcm",
            "rtstruct.dcm",
            "test-SR.dcm",
            "waveform_ecg.dcm",
        ],
        (422, NO_PIXELS),
    ),
}
REFUSED["rtplan.dump"] = (400, "the input is text")

NOT_READ_BY_PYLIBJPEG = "JPEG-lossy.dcm"
"""Its JPEG lacks what libjpeg of pylibjpeg insists on; the same image as JPGExtended.dcm."""

TOLERANCE = {
    # the two JPEG libraries differ by one step in the inverse cosine transform, pydicom's YBR to RGB adds to it
    **dict.fromkeys(["JPGExtended.dcm"], 1),
    **dict.fromkeys([f for f in FILES if f.startswith(("SC_jpeg_no", "SC_rgb_dcmtk", "SC_rgb_jpeg"))], 2),
    "examples_ybr_color.dcm": 3,
}


def oracle(path: Path) -> NDArray[Any]:
    """Rescaled frames by pydicom, its codecs being pylibjpeg and pyjpegls, never the product's."""
    ds = pydicom.dcmread(path)
    syntax = ds.file_meta.TransferSyntaxUID
    plugin = ""
    if syntax in (*JPEGTransferSyntaxes, *JPEG2000TransferSyntaxes):
        plugin = "pylibjpeg"
    elif syntax in JPEGLSTransferSyntaxes:
        plugin = "pyjpegls"
    elif syntax.is_encapsulated:
        plugin = "pydicom"
    array, _ = get_decoder(syntax).as_array(ds, decoding_plugin=plugin) if plugin else (ds.pixel_array, None)
    if ds.PhotometricInterpretation == "PALETTE COLOR":
        table = apply_color_lut(array, ds)
        array = table.astype(np.float64) / np.iinfo(table.dtype).max * 255
    elif ds.SamplesPerPixel == 3:
        array = array.astype(np.float64) / (2**ds.BitsStored - 1) * 255
    else:
        array = apply_modality_lut(array, ds)
    return array if int(ds.get("NumberOfFrames") or 1) > 1 else array[np.newaxis]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [f for f in FILES if f not in REFUSED and f != NOT_READ_BY_PYLIBJPEG])
def test_file_equals_pydicom(name: str) -> None:
    pixels = decode(ROOT / name)
    expected = oracle(ROOT / name)
    if expected.ndim == 4 and not pixels.is_color:
        assert pixels.facts.notes
        expected = expected[..., 0]
    assert pixels.array.dtype == np.float32
    assert pixels.array.shape == expected.shape
    np.testing.assert_allclose(pixels.array, expected, rtol=1e-6, atol=TOLERANCE.get(name, 1e-4))


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_file_without_usable_pixels_is_a_named_error(name: str) -> None:
    code, text = REFUSED[name]
    with pytest.raises(InputError) as error:
        decode(ROOT / name)
    assert error.value.code == code
    assert text in error.value.message
    assert error.value.hint


def test_extended_jpeg_that_the_oracle_cannot_read_equals_its_twin() -> None:
    lossy, twin = decode(ROOT / NOT_READ_BY_PYLIBJPEG), decode(ROOT / "JPGExtended.dcm")
    np.testing.assert_array_equal(lossy.array, twin.array)
    assert lossy.array[0, 420, 140] == 244  # the value pydicom's own tests know of this image


def test_every_file_is_named_once() -> None:
    assert set(REFUSED) <= set(FILES)
    assert len(FILES) >= 79
