"""What others do with a file: the floors under decoding, and stock pipelines that end at the same tensor."""

from __future__ import annotations

import gzip
import io
import logging
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import nibabel
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_rescale, apply_windowing

from medad_serve.bench.timing import Task
from medad_serve.spec import Window

Image = NDArray[np.float32]
PLUGINS = {"pydicom": "pydicom", "pylibjpeg": "pylibjpeg", "pyjpegls": "jpeg_ls"}
"""Modules behind pydicom's decoder plugins."""


def has_plugin(plugin: str) -> bool:
    """Whether a decoder plugin of pydicom can be used; "" is none."""
    return not plugin or find_spec(PLUGINS[plugin]) is not None


def pixel_array(data: bytes, plugin: str) -> tuple[Dataset, NDArray[Any]]:
    """Return what pydicom reads of a file through a decoder that is not the product's."""
    ds = pydicom.dcmread(io.BytesIO(data))
    if plugin:
        ds.pixel_array_options(decoding_plugin=plugin)
    return ds, ds.pixel_array


def pydicom_pipeline(data: bytes, plugin: str, size: tuple[int, ...]) -> Image:
    """Return a slice ``size`` (H, W) on [0, 1] by pydicom's rescale and windowing, and OpenCV's resize."""
    ds, stored = pixel_array(data, plugin)
    shown = apply_windowing(apply_rescale(stored, ds), ds).astype(np.float32)
    small = cv2.resize(shown, size[::-1], interpolation=cv2.INTER_AREA)
    least = -(2 ** (ds.BitsStored - 1)) if ds.PixelRepresentation else 0
    ends = least, least + 2**ds.BitsStored - 1
    low, high = (float(ds.RescaleSlope) * v + float(ds.RescaleIntercept) for v in ends)
    return np.asarray((small - low) / (high - low), np.float32)


def monai_pipeline(path: Path, size: tuple[int, ...], window: Window) -> Task:
    """Return a task that does the same by MONAI's transforms; MONAI reads a path, and takes rows for columns."""
    from monai.data.image_reader import PydicomReader
    from monai.transforms.compose import Compose
    from monai.transforms.intensity.array import ScaleIntensityRange
    from monai.transforms.io.array import LoadImage
    from monai.transforms.spatial.array import Resize

    low = window.center - 0.5 - (window.width - 1) / 2
    logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)
    with warnings.catch_warnings():  # of optional readers that are not installed
        warnings.simplefilter("ignore")
        load = LoadImage(reader=PydicomReader(), image_only=True, ensure_channel_first=True)
    scale = ScaleIntensityRange(low, low + window.width - 1, 0.0, 1.0, clip=True)
    steps = Compose([load, scale, Resize(size, mode="area")])
    return lambda: steps(path)


def read_picture(data: bytes) -> Any:
    """Decode a PNG or JPEG by OpenCV alone."""
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


def read_nifti(data: bytes) -> Any:
    """Read the voxels of a NIfTI by nibabel alone."""
    return np.asarray(nibabel.Nifti1Image.from_bytes(data).dataobj)


def read_nifti_gz(data: bytes) -> Any:
    """Inflate a NIfTI and read its voxels by nibabel alone."""
    return read_nifti(gzip.decompress(data))


def read_npy(data: bytes) -> Any:
    """Read a .npy by numpy alone."""
    return np.load(io.BytesIO(data))
