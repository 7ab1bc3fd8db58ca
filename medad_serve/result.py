"""What an item asks for, and what it is answered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from medad_serve.io import LeftOut
from medad_serve.spec import Frozen, Window

HeatmapFormat = Literal["none", "png", "npy"]


@dataclass(frozen=True)
class Options:
    """What one item asks for beyond its score."""

    heatmap: HeatmapFormat = "none"
    policy: str | None = None


class ItemResult(Frozen):
    """One slice of a series (in anatomical order where positions are known), or one labelled region of a scan."""

    index: int
    source: int | None = None
    """Of a slice that came in a file of its own: the place of that file among those sent, from 0."""
    region: str | None = None
    """Name of the region, e.g. ``L3``."""
    score: float
    p_value: float
    anomalous: bool
    probability: float | None = None
    severity: float | None = None


class Heatmap(Frozen):
    """``png``: overlay on the windowed source; ``npy``: float32 map, (H, W) or (D, H, W). Of the highest score."""

    format: HeatmapFormat
    frame: int
    """Index of the slice that is shown."""
    data: str
    """base64."""


class InputFacts(Frozen):
    """What was understood of the input."""

    kind: str
    modality: str
    rows: int
    columns: int
    frames: int
    window: Window | None
    voi_lut: bool | None = None
    """True where the file was shown by its own VOI LUT, in place of a window."""


class Result(Frozen):
    """The answer for one item."""

    model: str
    version: str
    level: Literal["slice", "volume", "patient"]
    score: float
    p_value: float
    cutoff: float
    policy: str
    anomalous: bool
    probability: float | None = None
    """Of being abnormal, of the item with the highest score; where the model has one."""
    severity: float | None = None
    """Of the fault, of the item with the highest score, on the model's own scale; where it has one."""
    slices: tuple[ItemResult, ...] | None = None
    regions: tuple[ItemResult, ...] | None = None
    heatmap: Heatmap | None = None
    input: InputFacts
    left_out: tuple[LeftOut, ...] | None = None
    """Of the files sent together, those that were not used; where there are any."""
    warnings: tuple[str, ...] = ()
    timing_ms: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data, leaving out what the model does not have."""
        return self.model_dump(mode="json", exclude_none=True)
