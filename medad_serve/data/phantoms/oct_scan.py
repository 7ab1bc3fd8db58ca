"""A retinal OCT B-scan drawn from an eye and its disease: layers, choroid, vessels, then what the scanner adds."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from medad_serve.data.phantoms.drawing import Floats, Mask, floats, opacity, over, wave
from medad_serve.data.phantoms.oct_eye import HEIGHT, LAYERS, WIDTH, Eye
from medad_serve.data.phantoms.oct_lesions import HEALTHY, Disease, Pocket, highest

Bytes = npt.NDArray[np.uint8]

LEVELS = {
    "nfl": 0.76,
    "gcl": 0.50,
    "ipl": 0.46,
    "inl": 0.33,
    "opl": 0.46,
    "onl": 0.25,
    "is": 0.30,
    "ez": 0.82,
    "iz": 0.58,
    "rpe": 0.92,
}
"""Displayed brightness of each layer in the mean eye, read off Spectralis scans of healthy eyes."""
_VITREOUS, _FLUID, _MATERIAL, _MEMBRANE = 0.03, 0.07, 0.66, 0.40
_EDGE = 2.2  # px over which one layer passes into the next: the coherence length, about 8 um
_MARKED = 1.5  # px; a thinner film of fluid or material is not marked in a mask

Surfaces = dict[str, Floats]


def oct_scan(rng: np.random.Generator, eye: Eye, disease: Disease = HEALTHY) -> tuple[Bytes, Mask]:
    """Draw a B-scan: uint8 (496, 512) and the mask of the disease (empty in a healthy eye)."""
    rows = np.arange(HEIGHT, dtype=np.float32)[:, None]
    tops = surfaces(eye, disease)
    level = _tissue(rng, eye, disease, tops, rows)
    mask = (rows >= tops["fluid"] - 0.5) & (rows < tops["bruch"] - 0.5)
    mask &= tops["bruch"] - tops["fluid"] - eye.thicknesses()["rpe"] > _MARKED
    for pocket in disease.pockets:
        depth = _pocket(pocket, tops, rows)
        level = over(level, depth, np.float32(pocket.level), _EDGE)
        mask |= depth > 0
    level, mask = _ruffled(rng, level, mask)
    level *= _shadows(rng, tops, rows)
    return _acquire(rng, eye, level), mask


def surfaces(eye: Eye, disease: Disease = HEALTHY) -> Surfaces:
    """Return the upper row of every layer, of ``fluid`` and ``material`` and of ``bruch``, (512,) each.

    Where the pigment epithelium is pushed up, the photoreceptors' nuclear layer gives way first; the inner
    retina rises softly over a wider place. Swelling widens the middle layers and fills the pit.
    """
    thickness = eye.thicknesses()
    detached, material, fluid = disease.detached(), highest(disease.material), highest(disease.fluid)
    swelling = highest(disease.swelling)
    lift = floats(detached + material + fluid)
    inner = floats(cv2.GaussianBlur(0.6 * lift[None, :], (0, 0), 12, borderType=cv2.BORDER_REPLICATE)[0])
    for name, share in (("inl", 0.25), ("opl", 0.1), ("onl", 0.65)):
        thickness[name] = thickness[name] + share * swelling
    tops: Surfaces = {"bruch": eye.bruch()}
    row = tops["bruch"] - detached
    for name in reversed(LAYERS):
        if name == "iz":  # between photoreceptors and pigment epithelium
            tops["material"] = row = floats(row - material)
            tops["fluid"] = row = floats(row - fluid)
        taken = lift - inner if name == "onl" else 0
        row = floats(row - np.maximum(thickness[name] - taken, 0.3 * thickness[name]))
        tops[name] = row
    return tops


def _tissue(rng: np.random.Generator, eye: Eye, disease: Disease, tops: Surfaces, rows: Floats) -> Floats:
    """Return noise-free brightness (496, 512)."""
    level = np.full((HEIGHT, WIDTH), _VITREOUS, dtype=np.float32)
    if eye.hyaloid:
        line = tops["nfl"].min() - eye.hyaloid + 0.6 * (eye.bruch() - eye.bruch().min()) - 4 * wave(rng, WIDTH, 2)
        level = over(level, 1.0 - np.abs(rows - line), 0.17, _EDGE)
    # Photoreceptors lose their bands over a neovascular membrane.
    lost = floats(np.clip(highest(disease.material) / 12, 0, 0.75))
    for name, extra in zip(LAYERS, eye.levels, strict=True):
        value: Any = np.float32(LEVELS[name] + extra) * (1 + 0.05 * wave(rng, WIDTH, 24))
        if name in ("ez", "iz"):
            value = value + lost * (LEVELS["onl"] - value)
        if name == "rpe":
            level = _film(level, rows, tops["fluid"], tops["material"], _FLUID)
            level = _film(level, rows, tops["material"], tops["rpe"], _MATERIAL * (1 + 0.08 * wave(rng, WIDTH, 30)))
            value = value * (1 - 0.3 * lost)
        level = over(level, rows - tops[name], value, _EDGE)
    level = over(level, 0.6 - np.abs(rows - tops["is"]), 0.36, _EDGE)  # the external limiting membrane
    detached = disease.detached()
    level = _film(level, rows, tops["bruch"] - detached, tops["bruch"], disease.content)
    level = over(level, rows - tops["bruch"], _choroid(rng, eye, tops["bruch"], rows, lost), _EDGE)
    line = over(level, 0.8 - np.abs(rows - tops["bruch"]), _MEMBRANE, _EDGE)
    return floats(np.where(detached > _MARKED, line, level))


def _film(level: Floats, rows: Floats, top: Floats, bottom: Floats, value: Any) -> Floats:
    """Lay ``value`` from ``top`` downward, only in columns where there is any of it."""
    return floats(level + opacity(rows - top, _EDGE) * np.clip(bottom - top, 0, 1) * (value - level))


def _choroid(rng: np.random.Generator, eye: Eye, bruch: Floats, rows: Floats, lost: Floats) -> Floats:
    """Return brightness of choroid and sclera: fine vessels above, wide dark ones below, fading with depth."""
    depth = np.maximum(rows - bruch, 0)
    share = np.clip((depth - 8) / (0.45 * eye.choroid), 0, 1)
    lumen = np.clip((1 - share) * _blobs(rng, 5, 6) + share * _blobs(rng, 15, 13), -1, 1.2)
    end = eye.choroid * (1 + 0.12 * wave(rng, WIDTH, 5))
    within = opacity(end - depth, 30) * np.clip(depth / 6, 0, 1)
    stroma = 0.43 + 0.15 * np.exp(-depth / 6) - 0.12 * within * lumen
    fade = np.exp(-depth / (1.3 * eye.choroid) - np.maximum(depth - 0.8 * end, 0) / 45)
    return floats(stroma * fade * (1 - 0.35 * lost))


def _blobs(rng: np.random.Generator, wide: float, high: float) -> Floats:
    """Return a smooth field (496, 512) of about unit spread whose blobs are that large, px."""
    grid = rng.standard_normal((round(HEIGHT / high), round(WIDTH / wide)), dtype=np.float32)
    return floats(cv2.resize(grid, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC))


def _shadows(rng: np.random.Generator, tops: Surfaces, rows: Floats) -> Floats:
    """Return how much light is left, (496, 512): retinal vessels are bright above and cast shadows beneath."""
    left = np.ones((HEIGHT, WIDTH), dtype=np.float32)
    columns = np.arange(WIDTH, dtype=np.float32)
    inner = tops["inl"] - tops["nfl"]
    for _ in range(int(rng.integers(4, 12))):
        col, width = rng.uniform(0, WIDTH), rng.uniform(0.8, 2.2) if rng.random() < 0.7 else rng.uniform(2.5, 5)
        near = np.abs(columns - col) < 4 * width
        across = np.exp(-(((columns[near] - col) / width) ** 2))
        depth = rows - (tops["nfl"] + 0.45 * inner)[near]
        strength = rng.uniform(0.08, 0.22) + 0.04 * width
        left[:, near] *= 1 - np.float32(strength) * across * opacity(depth, 8)
        # A vessel lies in the inner retina; where the fovea has none, nor does it show.
        wall = np.clip(inner[near] / 10, 0, 1) * np.exp(-((depth / (1.5 * width)) ** 2))
        left[:, near] *= 1 + np.float32(0.25) * across * wall
    return floats(left * (1 + 0.04 * wave(rng, WIDTH, 40)))


def _ruffled(rng: np.random.Generator, level: Floats, mask: Mask) -> tuple[Floats, Mask]:
    """Return both with outlines as uneven as tissue: every point moved by about a pixel."""
    columns, rows = np.meshgrid(np.arange(WIDTH, dtype=np.float32), np.arange(HEIGHT, dtype=np.float32))
    columns += 1.2 * _blobs(rng, 7, 7)
    rows += 0.5 * _blobs(rng, 5, 8)
    moved = cv2.remap(level, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    if mask.any():
        mask = cv2.remap(mask.astype(np.uint8), columns, rows, cv2.INTER_NEAREST) > 0
    return floats(moved), mask


def _pocket(pocket: Pocket, tops: Surfaces, rows: Floats) -> Floats:
    """Return px inside a pocket, about, (496, 512)."""
    first, last = pocket.layers
    order = [*LAYERS, "bruch"]
    col = int(np.clip(round(pocket.col), 0, WIDTH - 1))
    top, bottom = tops[first][col], tops[order[order.index(last) + 1]][col]
    # In a thin layer a cyst is flat: it displaces its neighbours but little.
    half = min(pocket.height, max(3.0, 0.9 * float(bottom - top))) / 2
    across = (np.arange(WIDTH, dtype=np.float32) - pocket.col) / np.float32(pocket.width / 2)
    down = (rows - (top + pocket.depth * (bottom - top))) / np.float32(half)
    return floats((1 - np.hypot(across[None, :], down)) * min(half, pocket.width / 2))


def _acquire(rng: np.random.Generator, eye: Eye, level: Floats) -> Bytes:
    """Return what the scanner shows: speckle multiplies, detector noise adds, and the fourth root is displayed.

    The display takes off the mean noise: where no light comes back, half of the pixels are black and the root
    lifts the rest.
    """
    signal = level**4 * _speckle(rng, eye.looks)
    noise = np.float32(eye.floor**4) * (_speckle(rng, eye.looks) - np.float32(eye.black))
    shown = np.sqrt(np.sqrt(np.maximum(signal + noise, 0)))
    shown[: round(eye.cut)] = 0
    return np.asarray(np.clip(np.rint(255 * eye.gain * shown), 0, 255), dtype=np.uint8)


def _speckle(rng: np.random.Generator, looks: float) -> Floats:
    """Return unit-mean intensity of averaged speckle, correlated between neighbours as the beam's width does."""
    grain = rng.standard_gamma(looks, (HEIGHT, WIDTH), dtype=np.float32) / np.float32(looks)
    across, down = np.array([0.25, 0.5, 0.25]), np.array([0.2, 0.6, 0.2])
    return floats(cv2.sepFilter2D(grain, -1, across, down))
