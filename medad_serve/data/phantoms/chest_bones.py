"""Ribs, clavicles, spine, shoulders and the vessels of the lungs, drawn as strokes on the film."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from medad_serve.data.phantoms.chest_body import APEX, Chest, Frame, outer
from medad_serve.data.phantoms.drawing import Floats, floats, opacity

Bytes = npt.NDArray[np.uint8]
RIBS = 10
_FINE = 4  # bits of a pixel's fraction that OpenCV's strokes take
_WALL = 0.045  # half chest widths from the lung's edge to the middle of a rib


def bones(frame: Frame) -> Floats:
    """Return what bones take from the beam, ``(H, W)``."""
    back = _tubes(frame, [_posterior(frame.chest, n, side) for n in range(RIBS) for side in (-1, 1)], 0.058)
    front = _tubes(frame, [_anterior(frame.chest, n, side) for n in range(1, 7) for side in (-1, 1)], 0.062)
    clavicles = _tubes(frame, [_clavicle(side) for side in (-1, 1)], 0.07)
    blades = _tubes(frame, [_blade(side) for side in (-1, 1)], 0.05)
    arms = opacity(0.17 - np.hypot(np.abs(frame.u) - 1.16, frame.v + 0.76), 0.04)
    total = 0.17 * back + 0.1 * front + 0.22 * clavicles + 0.08 * blades + 0.22 * arms + _spine(frame)
    return floats(frame.chest.bones * total)


def vessels(rng: np.random.Generator, frame: Frame) -> Floats:
    """Return what the lungs' vessels take, ``(H, W)``: trees that thin out from both hila."""
    canvas = np.zeros(frame.u.shape, np.uint8)
    for side in (-1, 1):
        root = np.array([side * 0.2, -0.02])
        for angle in np.linspace(-1.35, 1.35, 8) + rng.normal(0, 0.12, 8):
            _branch(rng, frame, canvas, root, angle, side, 0.022, 0.34)
    hila = sum(np.exp(-np.square((frame.u - s * 0.23) / 0.07) - np.square(frame.v / 0.13)) for s in (-1, 1))
    return floats(cv2.GaussianBlur(canvas, (0, 0), 0.9).astype(np.float32) / 255 * 0.22 + 0.12 * hila)


def _branch(
    rng: np.random.Generator,
    frame: Frame,
    canvas: Bytes,
    root: npt.NDArray[np.float64],
    angle: float,
    side: int,
    width: float,
    length: float,
) -> None:
    """Draw a vessel outward from ``root``, then the two that it divides into; they are the fainter the finer."""
    if width < 0.008:
        return
    bends = angle + np.cumsum(rng.normal(0, 0.12, 4))
    steps = length / 4 * np.stack([side * np.cos(bends), np.sin(bends)], axis=-1)
    points = np.concatenate([root[None], root + np.cumsum(steps, axis=0)])
    _stroke(canvas, frame.pixels(points[:, 0], points[:, 1]), width * frame.px, round(255 * min(1, width / 0.022)))
    for fork in (-1, 1):
        turn = float(bends[-1]) + fork * rng.uniform(0.2, 0.5)
        _branch(rng, frame, canvas, points[-1], turn, side, width * 0.66, length * rng.uniform(0.6, 0.85))


def _stroke(canvas: Bytes, points: Floats, width: float, value: int = 255) -> None:
    fine = np.rint(points * 2**_FINE).astype(np.int32)
    cv2.polylines(canvas, [fine[:, None]], False, value, max(1, round(width)), cv2.LINE_AA, _FINE)


def _tubes(frame: Frame, lines: list[Floats], width: float) -> Floats:
    """Return hollow bones along lines of points ``(n, 2)``: brighter at both rims than between, at most 1."""
    whole, marrow = np.zeros((2, *frame.u.shape), np.uint8)
    for line in lines:
        points = frame.pixels(line[:, 0], line[:, 1])
        _stroke(whole, points, width * frame.px)
        _stroke(marrow, points, 0.55 * width * frame.px)
    soft = [cv2.GaussianBlur(part, (0, 0), 0.008 * frame.px).astype(np.float32) for part in (whole, marrow)]
    return floats((soft[0] - 0.4 * soft[1]) / 255)


def _lateral(chest: Chest, number: int) -> tuple[float, float, float]:
    """Return the row of a rib at the spine, its row at the chest wall and how far out that is."""
    top = chest.ribs + number * chest.rib_step
    side = top + 0.15 + 0.022 * number
    return top, side, float(outer(chest, side)) + _WALL


def _posterior(chest: Chest, number: int, side: int) -> Floats:
    top, lateral, wide = _lateral(chest, number)
    share = np.sin(np.linspace(0, np.pi / 2, 24))
    rise = 0.05 * np.sin(np.pi * np.clip(share * 1.5, 0, 1))
    return floats(np.stack([side * (0.07 + share * (wide - 0.07)), top - rise + (lateral - top) * share**3], axis=-1))


def _anterior(chest: Chest, number: int, side: int) -> Floats:
    _, lateral, wide = _lateral(chest, number)
    share = np.sin(np.linspace(0, np.pi / 2, 20))[::-1]
    inward = np.maximum(share, APEX / wide)
    return floats(np.stack([side * wide * inward, lateral + 0.42 * (1 - inward) ** 0.75], axis=-1))


def _clavicle(side: int) -> Floats:
    along = np.linspace(0, 1, 16)
    bend = 0.03 * np.sin(2 * np.pi * along)
    return floats(np.stack([side * (0.1 + 0.85 * along), -0.68 - 0.12 * along + bend], axis=-1))


def _blade(side: int) -> Floats:
    along = np.linspace(0, 1, 10)
    return floats(np.stack([side * (0.9 + 0.12 * np.sin(2.5 * along)), -0.7 + 0.75 * along], axis=-1))


def _spine(frame: Frame) -> Floats:
    """Return the vertebrae: bodies with discs between them and processes along the middle."""
    middle = frame.chest.spine * np.sin(2.2 * frame.v)
    away = np.abs(frame.u - middle)
    beat = np.cos(np.float32(2 * np.pi / 0.16) * frame.v)
    disc = np.square(np.square(beat)) * beat * beat
    body = opacity(0.1 - away, 0.03) * (0.24 - 0.09 * disc)
    process = np.exp(-np.square(away / 0.025)) * np.clip(-beat, 0, 1)
    return floats(body + 0.07 * process)
