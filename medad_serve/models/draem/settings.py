"""What a DRAEM is made of: widths, severity head, loss weights, score, and the faults that it learns from."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from medad_serve.spec import Frozen

SeverityInput = Literal["discriminative_only", "with_original", "with_reconstruction", "with_error_map", "multi_modal"]
SEVERITY_INPUTS: dict[SeverityInput, tuple[str, ...]] = {
    "discriminative_only": (),
    "with_original": ("original",),
    "with_reconstruction": ("reconstruction",),
    "with_error_map": ("error_map",),
    "multi_modal": ("original", "reconstruction", "error_map"),
}
"""What the severity head sees beside the two maps of the discriminative network."""
PatchShape = Literal["rectangle", "ellipse", "irregular"]
Range = tuple[float, float]


class RatioRanges(Frozen):
    """Width by height of a patch, of each form that is drawn; null leaves a form out. All forms are as likely."""

    landscape: Range | None = (2.0, 4.0)
    portrait: Range | None = (0.25, 0.5)
    square: Range | None = (1.0, 1.0)

    @field_validator("*")
    @classmethod
    def _rises(cls, ratios: Range | None) -> Range | None:
        if ratios is not None and not 0 < ratios[0] <= ratios[1]:
            raise ValueError("must be two rising numbers above 0, width by height")
        return ratios

    @model_validator(mode="after")
    def _has_a_form(self) -> Self:
        if not self.forms:
            raise ValueError("must keep landscape, portrait or square")
        return self

    @property
    def forms(self) -> tuple[Range, ...]:
        """Ranges of the forms that are drawn."""
        return tuple(r for r in (self.landscape, self.portrait, self.square) if r is not None)


class FaultSettings(Frozen):
    """Synthetic faults that training, validation and graded evaluation make of normals; lengths in prepared pixels."""

    kind: Literal["cut_paste", "perlin", "mixed"] = "cut_paste"
    """``cut_paste``: patches from elsewhere in the image; ``perlin``: DRAEM's noise-shaped textures; ``mixed``:
    one or the other, each for half of the faulted images."""
    probability: float = Field(0.5, ge=0, le=1)
    """Of an image to get a fault."""
    severity_max: float = Field(10.0, gt=0)
    weakest: float = Field(0.1, gt=0, le=1)
    """Smallest severity of a fault, as a share of ``severity_max``: weaker ones are seen by nobody."""
    patch_width_range: Range = (20.0, 80.0)
    """Width of a patch; as many lie between 20 and 40 as between 40 and 80."""
    patch_ratio_range: RatioRanges = RatioRanges()
    patch_count: tuple[int, int] = (1, 3)
    """Fewest and most patches of an image; all share severity, ratio, size and outline."""
    patch_shapes: tuple[PatchShape, ...] = ("rectangle", "ellipse", "irregular")
    """One of these an image, each as likely."""
    rotate_degrees: float = Field(0.0, ge=0, le=180)
    """Largest turn of a patch's outline, either way."""
    overhang: float = Field(0.0, ge=0, lt=0.5)
    """Share of a patch's height and width that may lie beyond the border: what is cut off there looks broken off."""
    foreign: float = Field(0.0, ge=0, le=1)
    """Share of images whose patches come from another image of the batch."""
    contrast: float = Field(0.2, ge=0)
    """What the highest severity adds to or takes from a patch's brightness, as a share of the value range."""
    darker: float = Field(0.5, ge=0, le=1)
    """Share of images whose patches lose brightness rather than gain it."""
    softness: int = Field(1, ge=0)
    """Pixels over which a patch blends in at its rim; 0 cuts it sharply."""
    feather: float = Field(0.0, ge=0, le=1)
    """Largest share of the way from a patch's rim to its middle over which it fades in; drawn from 0 to this."""
    cracks: float = Field(0.0, ge=0, le=1)
    """Share of faulted images that get cracks in place of what ``kind`` says: thin lines, 1 to 3 an image."""
    crack_width_range: Range = (1.0, 6.0)
    """Pixels; as many are from 1 to 2 wide as from 2 to 4."""
    crack_length_range: Range = (0.05, 0.6)
    """As shares of the longer side."""
    crack_contrast: float = Field(0.5, ge=0)
    """What the highest severity takes from or adds to a crack's brightness, as a share of the value range."""
    values: Range = (0.0, 1.0)
    """Prepared values of black and white, which no fault leaves."""

    @field_validator("patch_width_range", "crack_width_range")
    @classmethod
    def _widths_rise(cls, widths: Range) -> Range:
        if not 1 <= widths[0] <= widths[1]:
            raise ValueError("must be two rising numbers of pixels from 1")
        return widths

    @field_validator("crack_length_range")
    @classmethod
    def _lengths_rise(cls, lengths: Range) -> Range:
        if not 0 < lengths[0] <= lengths[1]:
            raise ValueError("must be two rising numbers above 0")
        return lengths

    @field_validator("patch_count")
    @classmethod
    def _counts_rise(cls, counts: tuple[int, int]) -> tuple[int, int]:
        if not 1 <= counts[0] <= counts[1]:
            raise ValueError("must be two rising whole numbers from 1")
        return counts

    @field_validator("patch_shapes")
    @classmethod
    def _shapes_differ(cls, shapes: tuple[PatchShape, ...]) -> tuple[PatchShape, ...]:
        if not shapes or len(set(shapes)) < len(shapes):
            raise ValueError("must name rectangle, ellipse or irregular, each at most once")
        return shapes

    @field_validator("values")
    @classmethod
    def _values_rise(cls, values: Range) -> Range:
        if values[0] >= values[1]:
            raise ValueError("must be two rising numbers, of black and white")
        return values


class LossWeights(Frozen):
    """What each term counts in the loss; the source's."""

    reconstruction: float = Field(1.0, ge=0)
    segmentation: float = Field(1.0, gt=0)
    severity: float = Field(0.5, ge=0)


class DraemSettings(Frozen):
    """Networks, faults, losses and score; by default 1.9 million parameters, as the source's."""

    reconstructive_width: int = Field(16, ge=1)
    """Channels of the first level; 128 in the published DRAEM."""
    discriminative_width: int = Field(10, ge=1)
    """Channels of the first level; 64 in the published DRAEM."""
    patch: int = Field(1, ge=1)
    """Side of the squares of pixels that the first level of both reads and writes as one: 2 trains 4 times as fast
    as 1, which is the published DRAEM."""
    severity_head: bool = True
    """Without it and with ``faults.kind=perlin`` this is the published DRAEM."""
    severity_input: SeverityInput = "multi_modal"
    severity_widths: tuple[int, int, int] = (32, 64, 128)
    """Channels of its three convolutions."""
    severity_hidden: tuple[int, int] = (64, 32)
    """Of the layers between its pooled features and the severity."""
    dropout: float = Field(0.2, ge=0, lt=1)
    """Between those layers."""
    faults: FaultSettings = FaultSettings()
    weights: LossWeights = LossWeights()
    focal_gamma: float = Field(2.0, ge=0)
    severity_loss: Literal["mse", "smooth_l1"] = "mse"
    score: Literal["window", "top"] = "window"
    """``window``: highest mean of the heatmap in a square, as in DRAEM; ``top``: mean of its highest values."""
    score_window: int = Field(21, ge=1)
    """Side of that square in prepared pixels; odd."""
    score_top: float = Field(0.002, gt=0, le=1)
    """Share of the image whose highest values count."""

    @field_validator("severity_widths", "severity_hidden")
    @classmethod
    def _have_channels(cls, widths: tuple[int, ...]) -> tuple[int, ...]:
        if min(widths) < 1:
            raise ValueError("must be whole numbers from 1")
        return widths

    @field_validator("score_window")
    @classmethod
    def _is_centred(cls, side: int) -> int:
        if side % 2 == 0:
            raise ValueError("must be odd")
        return side
