"""What can be looked at of an item, at the size of its preparation and on the pixels of its file."""

from __future__ import annotations

from typing import Any

import cv2
import matplotlib
import numpy as np
from numpy.typing import NDArray

from medad_serve.calibration import Decider
from medad_serve.evaluation.pixels import Source, read_source, whole_files
from medad_serve.evaluation.scoring import Scored
from medad_serve.evaluation.subject import Subject
from medad_serve.metrics import Mask
from medad_serve.report import Maps, Row, color_map, scales
from medad_serve.runtime import FloatArray

TITLES = {"alignment": "alignment (ALM)"}
"""Of outputs whose name is not what readers call them."""
INPUT, SOURCE = "input", "image"
MOST = 14
"""Items shown on their source pixels."""
LARGEST = 1024
"""Side in pixels above which a panel is drawn smaller, to keep the page light."""
_QUALITY = 90
_OUTLINE = {SOURCE: (80, 255, 80), "heatmap": (255, 255, 255)}
"""BGR, by panel."""


def maps_of(item: FloatArray, outputs: dict[str, NDArray[Any]]) -> dict[str, FloatArray]:
    """Return what can be looked at of one item ``(C, *S)``: arrays ``S``, or ``S`` and 3 for colour images.

    The item, its ``reconstruction`` and their absolute difference (``residual``) where the model returns one, and
    every other real-valued map, whatever it is called; ``heatmap`` comes last. ``outputs`` are those of the one
    item, without the batch axis; maps of another resolution are repeated up or thinned to that of the item.
    """
    size = item.shape[1:]
    shown = {INPUT: _image(item)}
    reconstruction = outputs.get("reconstruction")
    if reconstruction is not None:
        shown["reconstruction"] = _image(reconstruction)
        shown["residual"] = np.abs(item - reconstruction).mean(axis=0)
    is_map = {n: v for n, v in outputs.items() if v.ndim == item.ndim and v.dtype.kind == "f"}
    for name in sorted(is_map.keys() - {"reconstruction"}, key=lambda n: (n == "heatmap", n)):
        shown[TITLES.get(name, name)] = _fitted(is_map[name].mean(axis=0), size)
    return shown


def _image(item: FloatArray) -> FloatArray:
    return np.moveaxis(item, 0, -1) if len(item) == 3 else item.mean(axis=0)


def _fitted(values: FloatArray, size: tuple[int, ...]) -> FloatArray:
    """Bring a map to another size by its nearest values."""
    if values.shape == size:
        return values
    picks = [np.arange(wide) * have // wide for wide, have in zip(size, values.shape, strict=True)]
    return values[np.ix_(*picks)]


def _picked(subject: Subject, scored: Scored) -> list[int]:
    """Choose items of each class: the median one and the hardest, of defects the lowest score, else the highest."""
    whole = whole_files(subject.data)[scored.rows]
    healthy = scored.items.labels == 0
    groups = list(scored.classes.values()) or [~healthy]
    chosen: list[int] = []
    for mask, hardest in [*((m, 0) for m in groups), (healthy, -1)]:
        members = np.flatnonzero(mask & whole)
        if len(members):
            rising = members[np.argsort(scored.items.scores[members], kind="stable")]
            chosen += dict.fromkeys([int(rising[len(rising) // 2]), int(rising[hardest])])
    return chosen[: MOST - 2] + [i for i in chosen[MOST - 2 :] if healthy[i]]


def _caption(subject: Subject, scored: Scored, index: int, source: Source, policy: str) -> str:
    row = int(scored.rows[index])
    decision = Decider(subject.calibration.item).decide(float(scored.items.scores[index]), policy)
    truth = (subject.data.kinds[row] or "abnormal") if scored.items.labels[index] else "normal"
    lines = [truth, f"called {'anomalous' if decision.anomalous else 'normal'}", f"score {decision.score:.4g}"]
    lines += [f"{name} {values[index]:.3g}" for name, values in scored.components.items()]
    return "\n".join([*lines, " x ".join(map(str, source.shown.shape)) + " px"])


def full_size(subject: Subject, scored: Scored, policy: str) -> Maps | None:
    """Return maps of some items on the pixels of their files, the truth outlined; None where no file is one frame.

    Shown are the median and the hardest item of each class. Each map has one scale of colours for all items.
    """
    if subject.prep.is_volume:
        return None
    found: list[tuple[str, Source, dict[str, FloatArray]]] = []
    for index in _picked(subject, scored):
        row = int(scored.rows[index])
        item = np.array(subject.data.tensor[row], np.float32)
        outputs = subject.runtime.run(item[None], subject.outputs)
        panels = maps_of(item, {name: values[0] for name, values in outputs.items()})
        source = read_source(subject, row)
        found.append((_caption(subject, scored, index, source, policy), source, panels))
    if not found:
        return None
    ranges = scales([Row("", panels) for _, _, panels in found], subject.prep.values)
    rows = [(caption, _drawn(source, panels, ranges)) for caption, source, panels in found]
    head = [SOURCE, *(name for name in found[0][2] if name != INPUT)]
    return Maps("Maps on the pixels of the files, the truth outlined", head, rows)


def _drawn(source: Source, panels: dict[str, FloatArray], ranges: dict[str, tuple[float, float]]) -> list[bytes]:
    images = [_jpeg(SOURCE, source.shown, (0.0, 1.0), source.mask)]
    for name, values in panels.items():
        if name != INPUT:
            images.append(_jpeg(name, source.geometry.to_source(values), ranges[name], source.mask))
    return images


def _jpeg(name: str, values: FloatArray, limits: tuple[float, float], mask: Mask | None) -> bytes:
    """Colour one panel ``(H, W)``, draw the outline of the mask on image and heatmap, and encode it."""
    low, high = limits
    scaled = np.clip((values - low) / (high - low), 0, 1)
    colors = matplotlib.colormaps["gray" if name == SOURCE else color_map(name)](scaled)[..., 2::-1]
    image = np.ascontiguousarray(np.round(colors * 255), np.uint8)
    if mask is not None and name in _OUTLINE:
        edges, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(image, edges, -1, _OUTLINE[name], 1 + max(image.shape) // 600)
    shrink = LARGEST / max(image.shape)
    if shrink < 1:
        image = np.asarray(cv2.resize(image, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA), np.uint8)
    return bytes(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1])
