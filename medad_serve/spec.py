"""What a model expects, how its input is prepared and what was measured of it: plain, frozen, checked data."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from medad_serve.errors import MedadError

SCHEMA_VERSION = 1
PRECISION = "float32"
"""Of every export so far; part of the key of a calibration."""


class Frozen(BaseModel):
    """Base of every stored record: unknown fields are refused, values do not change once read."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Window(Frozen):
    """A VOI window in the units of the rescaled pixels (HU for CT), by DICOM PS3.3 C.11.2.1.2."""

    center: float
    width: float
    function: Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"] = "LINEAR"

    @model_validator(mode="after")
    def _width_is_positive(self) -> Self:
        if self.width <= 0 or (self.function == "LINEAR" and self.width < 1):
            raise ValueError("window width must be >= 1 for LINEAR and > 0 otherwise")
        return self


class InputSpec(Frozen):
    """What a model accepts; an empty tuple accepts anything."""

    modalities: tuple[str, ...] = ()
    body_parts: tuple[str, ...] = ()
    min_size: int = 16
    """Smallest side of a source image in pixels."""


class PrepSpec(Frozen):
    """How decoded pixels become the model's tensor; the same object prepares for training and serving."""

    window: Window | None = None
    """None scales by the full range of the stored type (8-bit images: 0..255)."""
    size: tuple[int, ...] = (64, 64)
    output_range: tuple[float, float] = (0.0, 1.0)

    @model_validator(mode="after")
    def _is_usable(self) -> Self:
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError("size must be two positive numbers: height, width")
        if self.output_range[0] >= self.output_range[1]:
            raise ValueError("output_range must rise")
        return self


class Interval(Frozen):
    """A bootstrap interval."""

    low: float
    high: float
    level: float = 0.95


class Cutoff(Frozen):
    """``score >= value`` is anomalous."""

    policy: str
    value: float
    n: int
    """Held-out scores it was made from."""
    interval: Interval | None = None
    """Bootstrapped by patient."""


class LevelCalibration(Frozen):
    """Cutoffs and reference scores of one level."""

    normal_scores: tuple[float, ...]
    """Sorted held-out scores of normals; above 10,000 a grid rounded upward (p-values stay conservative)."""
    n: int
    patients: int
    cutoffs: tuple[Cutoff, ...]


class Calibration(Frozen):
    """Decisions of one runtime at one precision, made once, over the exported file."""

    method: Literal["held_out", "out_of_fold"]
    folds: int = 0
    aggregation: str = "max"
    """Patient score from slice scores: ``max``, ``mean`` or ``top<k>`` (mean of the k largest)."""
    slices_per_patient: tuple[int, int]
    data_fingerprint: str
    heatmap_scale: float
    """A high quantile of held-out normal heatmaps: full colour in an overlay."""
    slice: LevelCalibration
    patient: LevelCalibration


class Parity(Frozen):
    """How far a runtime's outputs lie from the trained model's, on real held-out inputs."""

    runtime: str
    batches: tuple[int, ...]
    inputs: int
    relative_tolerance: float
    max_absolute_difference: float
    max_relative_difference: float
    decisions: int
    flips: int


class OutputSpec(Frozen):
    """One named output; ``shape`` leaves the batch axis out."""

    name: str
    shape: tuple[int, ...]


class Manifest(Frozen):
    """``medad.json``: everything that must travel with the weights."""

    schema_version: int = SCHEMA_VERSION
    name: str
    model: str
    version: str = "1.0"
    model_settings: dict[str, Any] = Field(default_factory=dict)
    parameters: int
    input: InputSpec
    prep: PrepSpec
    input_shape: tuple[int, ...]
    """(C, *S) of one prepared item."""
    outputs: tuple[OutputSpec, ...]
    default_policy: str
    calibrations: dict[str, Calibration]
    """By runtime and precision, e.g. ``onnx/float32``."""
    parity: tuple[Parity, ...]
    seen: tuple[str, ...] = ()
    """Digest prefixes of the files that trained, chose or calibrated it: evaluation leaves them out."""
    packages: dict[str, str]
    files: dict[str, str]
    """sha256 by file name."""

    def calibration_of(self, runtime: str, source: object) -> Calibration:
        """Return the calibration of a runtime; raises MedadError, naming ``source``, where it was not exported."""
        key = f"{runtime}/{PRECISION}"
        if key not in self.calibrations:
            made = ", ".join(sorted(self.calibrations))
            raise MedadError(f"{source} was not exported for {key}", f"It has: {made}")
        return self.calibrations[key]


S = TypeVar("S", bound=BaseModel)


def validated(kind: type[S], data: object, source: str) -> S:
    """Build ``kind`` from plain data; a fault becomes one line that names each field at fault."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(str(p) for p in e['loc']) or 'value'}: {e['msg'].removeprefix('Value error, ')}"
            for e in error.errors()
        )
        raise MedadError(f"{source} cannot be used ({faults})", "Correct the fields named") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping, refusing anything else in one line."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise MedadError(f"cannot read {path} ({type(error).__name__})", "Name a readable YAML file") from None
    if not isinstance(data, dict):
        raise MedadError(f"{path} holds no mapping", "Write one 'field: value' a line")
    return data
