"""What a model expects, how its input is prepared and what was measured of it: plain, frozen, checked data."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from medad_serve.errors import MedadError

SCHEMA_VERSION = 2
"""Counts up where a manifest has other fields, or a runtime other numbers than its cutoffs were made with."""
FLOAT32 = "float32"
_SHORT = {"fp32": FLOAT32, "fp16": "float16", "bf16": "bfloat16"}


def full_name(variant: str) -> str:
    """Return ``runtime/precision`` of what a user may write: ``onnx`` is ``onnx/float32``, ``bf16`` ``bfloat16``."""
    runtime, _, precision = variant.partition("/")
    return f"{runtime}/{_SHORT.get(precision, precision) or FLOAT32}"


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
    """What a model accepts; an empty tuple or None accepts anything."""

    modalities: tuple[str, ...] = ()
    plain_images: bool = False
    """Whether files that state no modality (PNG, JPEG, NIfTI, ``.npy``) are accepted beside those modalities."""
    body_parts: tuple[str, ...] = ()
    min_size: int = 16
    """Smallest side of a source image in pixels."""
    bits: tuple[int, int] | None = None
    """Fewest and most bits of a stored value, of DICOM files with a modality."""
    spacing_mm: tuple[float, float] | None = None
    """Smallest and largest distance between pixels, of files that state it."""
    size: tuple[int, ...] | None = None
    """(D, H, W) or (H, W) that every source must have, e.g. of volumes cropped beforehand."""
    values: tuple[float, float] | None = None
    """Range in which every source value must lie, e.g. (0, 1) of volumes windowed beforehand."""
    hint: str = ""
    """What to do with a source of another size or range, said with the refusal."""


class Foreground(Frozen):
    """Crop each frame to the bounding square of its largest bright object (the head, without table and air)."""

    threshold: float = Field(0.05, ge=0, lt=1)
    """On the windowed scale 0..1."""
    margin: float = Field(0.03, ge=0, lt=1)
    """Added on every side, as a share of the square."""


class Percentiles(Frozen):
    """Scale each image so that two of its percentiles become 0 and 1; values beyond are clipped."""

    low: float = Field(1.0, ge=0, lt=100)
    high: float = Field(99.0, gt=0, le=100)

    @model_validator(mode="after")
    def _rise(self) -> Self:
        if self.low >= self.high:
            raise ValueError("low must be below high")
        return self


class Standardize(Frozen):
    """Subtract a mean and divide by a standard deviation, both on the scale 0..1."""

    mean: float
    std: float = Field(gt=0)


class Regions(Frozen):
    """How each labelled structure of a volume becomes an item of its own (vertebrae of a CT)."""

    size: tuple[int, int, int] = (128, 128, 128)
    """Voxels of a crop, (D, H, W)."""
    spacing_mm: float = Field(1.0, gt=0)
    """Isotropic, of the crop's voxels."""
    window: Window
    """In HU; crops are stored on its scale 0..1."""


class PrepSpec(Frozen):
    """How decoded pixels become the model's tensor; the same object prepares for training and serving."""

    window: Window | Literal["file"] | None = None
    """``file`` takes the VOI LUT or the first window of the file (PS3.3 C.11.2), and where it has none the full
    range of the stored type (8-bit images: 0..255), which None always takes."""
    foreground: Foreground | None = None
    smooth_sigma: float = Field(0.0, ge=0)
    """Gaussian in source pixels, before ``normalize``: speckle then weighs less in the percentiles."""
    normalize: Percentiles | None = None
    size: tuple[int, ...] = (64, 64)
    """(H, W): each frame is an item. (D, H, W): a whole volume is one."""
    fit: Literal["stretch", "cover"] = "stretch"
    """``cover`` keeps the ratio of a frame: its middle, as large as ``size`` allows, without what stands over."""
    output_range: tuple[float, float] = (0.0, 1.0)
    standardize: Standardize | None = None
    """In place of ``output_range``."""
    regions: Regions | None = None
    """Of volume models: how a whole scan that comes with a label mask is cut into items."""

    @model_validator(mode="after")
    def _is_usable(self) -> Self:
        if len(self.size) not in (2, 3) or min(self.size) < 1:
            raise ValueError("size must be positive numbers: height, width or depth, height, width")
        if self.is_volume and (self.foreground is not None or self.smooth_sigma):
            raise ValueError("foreground and smooth_sigma are of frames, not of volumes")
        if self.regions is not None and not self.is_volume:
            raise ValueError("regions are cut for volume models: size must be depth, height, width")
        if self.is_volume and self.fit != "stretch":
            raise ValueError("fit=cover is of frames, not of volumes")
        if self.output_range[0] >= self.output_range[1]:
            raise ValueError("output_range must rise")
        if self.standardize is not None and self.output_range != (0.0, 1.0):
            raise ValueError("standardize and output_range exclude each other")
        return self

    @property
    def values(self) -> tuple[float, float]:
        """What black and white (0 and 1 of the windowed scale) become in the tensor."""
        if self.standardize is None:
            return self.output_range
        mean, std = self.standardize.mean, self.standardize.std
        return (0 - mean) / std, (1 - mean) / std

    @property
    def is_volume(self) -> bool:
        """Whether an item is a volume (D, H, W) rather than a slice (H, W)."""
        return len(self.size) == 3

    @property
    def unit(self) -> Literal["slice", "volume"]:
        """What one item is called."""
        return "volume" if self.is_volume else "slice"


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


class InputRange(Frozen):
    """What the prepared inputs of a calibration look like: see :mod:`medad_serve.prep.familiar`."""

    n: int
    """Healthy items that it was measured on."""
    layout: tuple[float, ...]
    """Their mean coarse picture, rows after rows, of mean 0 and length 1."""
    ranges: dict[str, tuple[float, float]]
    """By statistic: what lies outside is far outside."""


class Calibration(Frozen):
    """Decisions of one runtime at one precision, made once, over the exported file."""

    method: Literal["held_out", "out_of_fold", "validation"]
    """``validation``: made on the patients who chose the checkpoint; good to report by, never exported."""
    folds: int = 0
    aggregation: str = "max"
    """Patient score from those of its slices or volumes: ``max``, ``mean`` or ``top<k>`` (mean of the k largest)."""
    items_per_patient: tuple[int, int]
    data_fingerprint: str
    heatmap_scale: float
    """Median over held-out normals (of a classifier: abnormal items) of a high quantile of the heatmap: full colour
    in an overlay."""
    item: LevelCalibration
    """Of one slice or volume."""
    patient: LevelCalibration
    inputs: InputRange | None = None
    """None where too few held-out items made it up."""


class Parity(Frozen):
    """How far a runtime's outputs lie from the trained model's, on real held-out inputs."""

    runtime: str
    batches: tuple[int, ...]
    inputs: int
    relative_tolerance: float
    max_absolute_difference: float
    max_relative_difference: float
    ties: int = 0
    """Codes that differ because two distances tie within the tolerance; floats of such items are not compared."""
    decisions: int
    flips: int


class Fidelity(Frozen):
    """What a reduced precision keeps of the trained model, on the held-out items that made its cutoffs."""

    variant: str
    items: int
    auroc: float | None
    auroc_trained: float | None
    """Of the trained model in float32 on the same items; both None where none of them is diseased."""
    correlation: float
    """Pearson's, of the scores."""
    agreement: float
    """Share of items decided alike by the default policy, each by cutoffs of its own."""
    max_relative_difference: float
    """Of the scores, as in :class:`Parity`."""
    layers: int = 0
    """That a quantized graph could compute in int8, and how many of them the search left in float32."""
    float_layers: int = 0


class Session(Frozen):
    """How a runtime is opened and called: what :mod:`medad_serve.bench.tuning` chooses by measuring."""

    threads: int = Field(0, ge=0)
    """Of one call of the graph, at most; 0: every core that the process has."""
    batch: int | None = Field(None, ge=1)
    """Items in one call of the graph, at most; None: as many as bounded memory allows."""
    arena: bool = True
    """Whether onnxruntime keeps the memory of a run for the next."""
    optimization: Literal["basic", "extended", "all"] = "all"
    """Of onnxruntime's graph."""
    spinning: bool = False
    """Whether onnxruntime's threads look for work in a loop until a call ends, rather than sleep between two operators:
    sooner awake, where operators are short and many, for more processor time."""


class Tuning(Frozen):
    """The fastest way found to run an artifact, and on what machine."""

    variant: str
    session: Session
    workers: int = Field(ge=1)
    """Processes that share the cores."""
    machine: str
    items_per_second: float
    trials: dict[str, float]
    """Items a second of everything that was tried."""


class OutputSpec(Frozen):
    """One named output; ``shape`` leaves the batch axis out."""

    name: str
    shape: tuple[int, ...]
    deviations: bool = False
    """Whether it counts standard deviations from the mean of normals: what it is held to is 1 at least."""


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
    fidelity: tuple[Fidelity, ...] = ()
    """Of the variants in reduced precision, which parity cannot hold for."""
    refused: dict[str, str] = Field(default_factory=dict, max_length=64)
    """Variants that were tried where this was exported and left out, and why."""
    tuning: Tuning | None = None
    probes: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    """Scores of made-up items, by variant: see :mod:`medad_serve.runtime.probe`."""
    seen: tuple[str, ...] = ()
    """Digest prefixes of the files that trained, chose or calibrated it: evaluation leaves them out."""
    packages: dict[str, str]
    files: dict[str, str]
    """sha256 by file name."""

    @property
    def default_variant(self) -> str:
        """What runs it where nobody chooses: the variant that was tuned, else onnxruntime where it was exported."""
        if self.tuning:
            return self.tuning.variant
        usual = full_name("onnx")
        return usual if usual in self.calibrations else next(iter(self.calibrations), usual)

    def session_of(self, variant: str) -> Session:
        """Return how a variant is opened and called: as tuned, where it is the one that was."""
        return self.tuning.session if self.tuning and self.tuning.variant == variant else Session()

    def calibration_of(self, variant: str, source: object) -> Calibration:
        """Return the calibration of a variant; raises MedadError, naming ``source``, where it was not exported."""
        key = full_name(variant)
        if key not in self.calibrations:
            made = ", ".join(sorted(self.calibrations))
            why = f" ({self.refused[key]})" if key in self.refused else ""
            raise MedadError(f"{source} was not exported for {key}{why}", f"It has: {made}")
        return self.calibrations[key]


S = TypeVar("S", bound=BaseModel)


_SHAPES = {
    "tuple_type": "must be a list in brackets, e.g. [1, 3]",
    "dict_type": "must be fields, e.g. {low: 1, high: 99}",
    "model_type": "must be fields, e.g. {low: 1, high: 99}",
}
"""What pydantic says of Python's types, as whoever writes YAML or key=value knows them."""


def validated(kind: type[S], data: object, source: str) -> S:
    """Build ``kind`` from plain data; a fault becomes one line that names each field at fault."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(str(p) for p in e['loc']) or 'value'}: "
            + _SHAPES.get(e["type"], e["msg"].removeprefix("Value error, "))
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
