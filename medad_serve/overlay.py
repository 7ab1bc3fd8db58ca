"""Heatmaps on the source pixels."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
MAX_ALPHA = 0.6


def overlay(shown: FloatArray, heatmap: FloatArray, scale: float) -> NDArray[np.uint8]:
    """Blend a heatmap over the frame it belongs to.

    ``shown`` is (H, W) in [0, 1], ``heatmap`` (H, W) in units of the score, ``scale`` the value that takes full
    colour (the same for every image of a model, so that images compare). Returns BGR (H, W, 3).
    """
    heat = np.clip(heatmap / max(scale, 1e-12), 0, 1).astype(np.float32)
    gray = cv2.cvtColor((np.clip(shown, 0, 1) * 255).astype(np.uint8), cv2.COLOR_GRAY2BGR)
    color = cv2.applyColorMap((heat * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)
    alpha = (MAX_ALPHA * heat)[..., None]
    return np.asarray(gray * (1 - alpha) + color * alpha, np.uint8)


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """Encode BGR or gray uint8 as PNG."""
    ok, data = cv2.imencode(".png", image)
    if not ok:
        raise ValueError(f"OpenCV cannot encode an image of shape {image.shape}")
    return bytes(data)
