"""Bytes in, decisions out: the one line that handler, command line and benchmark call."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medad_serve.artifact import load_manifest
from medad_serve.calibration import Decider, Decision, parse_aggregation
from medad_serve.errors import InputError
from medad_serve.io import Lut, Pixels, decode
from medad_serve.overlay import encode_png, overlay
from medad_serve.prep import Prepared, Shown, check_input, display, prepare, unfamiliar, window_of
from medad_serve.runtime import Outputs, open_runtime, run_batched
from medad_serve.spec import Calibration, Frozen, Manifest, Window

DETAILS = ("probability", "severity")
"""Outputs beside the score that an answer tells, where the model has them."""
HeatmapFormat = Literal["none", "png", "npy"]


@dataclass(frozen=True)
class Options:
    """What one item asks for beyond its score."""

    heatmap: HeatmapFormat = "none"
    policy: str | None = None


class ItemResult(Frozen):
    """One slice of a series (in anatomical order where positions are known), or one labelled region of a scan."""

    index: int
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
    warnings: tuple[str, ...] = ()
    timing_ms: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data, leaving out what the model does not have."""
        return self.model_dump(mode="json", exclude_none=True)


@dataclass
class _Item:
    """One item on its way through the line; its pixels are kept only where an overlay will be drawn on them."""

    facts: InputFacts
    warnings: tuple[str, ...]
    pixels: Pixels | None
    prepared: Prepared
    options: Options
    timing: dict[str, float]


class Predictor:
    """A verified artifact with its runtime open; thread-safe where the runtime is (onnxruntime, torch)."""

    def __init__(self, directory: Path, *, runtime: str, threads: int, device: str) -> None:
        self.manifest: Manifest = load_manifest(directory)
        self.calibration: Calibration = self.manifest.calibration_of(runtime, directory)
        names = [o.name for o in self.manifest.outputs]
        self.runtime = open_runtime(directory, runtime, names, threads=threads, device=device)
        self.details = [name for name in DETAILS if name in names]
        self.aggregate = parse_aggregation(self.calibration.aggregation)
        self.item_level = Decider(self.calibration.item)
        self.patient_level = Decider(self.calibration.patient)

    @classmethod
    def load(cls, artifact: Path, *, runtime: str = "onnx", threads: int = 0, device: str = "cpu") -> Predictor:
        """Open an artifact directory; raises MedadError naming what is missing or altered."""
        return cls(artifact, runtime=runtime, threads=threads, device=device)

    def predict(
        self, items: Sequence[bytes | Path], options: Sequence[Options] | None = None
    ) -> list[Result | InputError]:
        """Answer every item in order; an item that cannot be used gets its InputError, the others their result."""
        wanted = options or [Options()] * len(items)
        read = [self._read(item, option) for item, option in zip(items, wanted, strict=True)]
        good = [item for item in read if isinstance(item, _Item)]
        answers = iter(self._answer_all(good))
        return [next(answers) if isinstance(item, _Item) else item for item in read]

    def _read(self, source: bytes | Path, options: Options) -> _Item | InputError:
        try:
            if options.policy is not None:
                self._check_policy(options.policy)
            start = time.perf_counter()
            pixels = decode(source)
            check_input(pixels, self.manifest.input, self.manifest.prep)
            decoded = time.perf_counter()
            prepared = prepare(pixels, self.manifest.prep)
            done = time.perf_counter()
        except InputError as error:
            return error
        except MemoryError:
            return InputError(413, "the image does not fit into memory", "Send fewer or smaller frames")
        except Exception as error:  # a fault of ours must not cost the neighbours their answers
            return InputError(
                500, f"internal fault while reading ({type(error).__name__})", "Report this file's format"
            )
        warnings = self._warnings(pixels, prepared)
        if float(np.ptp(prepared.tensor)) == 0:
            warnings += ("the image is blank within the window: its score says nothing",)
        return _Item(
            facts=_facts(pixels, window_of(pixels, self.manifest.prep.window)),
            warnings=warnings,
            pixels=pixels if options.heatmap == "png" else None,
            prepared=prepared,
            options=options,
            timing={"decode": (decoded - start) * 1e3, "prepare": (done - decoded) * 1e3},
        )

    def _check_policy(self, policy: str) -> None:
        made = self.item_level.cutoffs.keys() & self.patient_level.cutoffs.keys()
        if policy not in made:
            raise InputError(
                422, "the policy asked for was not calibrated", f"This model has: {', '.join(sorted(made))}"
            )

    def _answer_all(self, items: list[_Item]) -> list[Result | InputError]:
        if not items:
            return []
        names = ["score", *self.details] + ["heatmap"] * any(item.options.heatmap != "none" for item in items)
        start = time.perf_counter()
        outputs = run_batched(self.runtime, np.concatenate([i.prepared.tensor for i in items]), names)
        infer = (time.perf_counter() - start) * 1e3
        answers: list[Result | InputError] = []
        row = 0
        for item in items:
            rows = slice(row, row + len(item.prepared.tensor))
            row = rows.stop
            item.timing["infer"] = infer
            answers.append(self._answer(item, {name: values[rows] for name, values in outputs.items()}))
        return answers

    def _answer(self, item: _Item, outputs: Outputs) -> Result | InputError:
        scores = outputs["score"].astype(np.float64)
        if not np.isfinite(scores).all():
            return InputError(422, "the model's score is not finite", "Check that the pixel values are plausible")
        policy = item.options.policy or self.manifest.default_policy
        regions = item.prepared.regions
        each = [self.item_level.decide(float(s), policy) for s in scores]
        details = {name: outputs[name].astype(np.float64) for name in self.details}
        highest = int(np.argmax(scores))
        is_patient = len(scores) > 1 or bool(regions)
        whole = self.patient_level.decide(self.aggregate(scores), policy) if is_patient else each[0]
        return Result(
            model=self.manifest.name,
            version=self.manifest.version,
            level="patient" if is_patient else self.manifest.prep.unit,
            score=whole.score,
            p_value=whole.p_value,
            cutoff=whole.cutoff,
            policy=whole.policy,
            anomalous=whole.anomalous,
            **{name: float(values[highest]) for name, values in details.items()},
            slices=_item_results(each, details) if is_patient and not regions else None,
            regions=_item_results(each, details, regions) if regions else None,
            heatmap=self._heatmap(item, outputs, highest),
            input=item.facts,
            warnings=item.warnings,
            timing_ms={name: round(ms, 3) for name, ms in item.timing.items()},
        )

    def _warnings(self, pixels: Pixels, prepared: Prepared) -> tuple[str, ...]:
        fewest, most = self.calibration.items_per_patient
        warnings = [*pixels.facts.notes, *prepared.notes]
        warnings += unfamiliar(prepared.tensor, self.manifest.prep, self.calibration.inputs)
        items = len(prepared.tensor)
        if (items > 1 or prepared.regions) and not fewest <= items <= most:
            unit = self.manifest.prep.unit + "s" * (items > 1)
            warnings.append(f"{items} {unit}; the patient cutoff was calibrated on patients with {fewest} to {most}")
        return tuple(warnings)

    def _heatmap(self, item: _Item, outputs: Outputs, highest: int) -> Heatmap | None:
        if item.options.heatmap == "none":
            return None
        on_source = item.prepared.geometries[highest].to_source(outputs["heatmap"][highest, 0])
        is_volume = on_source.ndim == 3
        frame = int(np.argmax(on_source.max(axis=(1, 2)))) if is_volume else highest
        if item.pixels is None:
            buffer = io.BytesIO()
            np.save(buffer, on_source)
            data = buffer.getvalue()
        else:
            shown = display(item.pixels.part(frame), self._window(item))[0]
            on_frame = on_source[frame] if is_volume else on_source
            data = encode_png(overlay(shown, on_frame, self.calibration.heatmap_scale))
        return Heatmap(format=item.options.heatmap, frame=frame, data=base64.b64encode(data).decode())

    def _window(self, item: _Item) -> Shown:
        """Return the window that the item was prepared with: regions have their own."""
        prep = self.manifest.prep
        return prep.regions.window if item.prepared.regions and prep.regions else prep.window


def _item_results(
    decisions: list[Decision], details: dict[str, NDArray[np.float64]], regions: tuple[str, ...] = ()
) -> tuple[ItemResult, ...]:
    return tuple(
        ItemResult(
            index=i,
            region=name,
            score=d.score,
            p_value=d.p_value,
            anomalous=d.anomalous,
            **{detail: float(values[i]) for detail, values in details.items()},
        )
        for i, (d, name) in enumerate(zip_longest(decisions, regions))
    )


def _facts(pixels: Pixels, window: Window | Lut | None) -> InputFacts:
    frames, rows, columns = pixels.array.shape[:3]
    return InputFacts(
        kind=pixels.kind,
        modality=pixels.facts.modality,
        rows=rows,
        columns=columns,
        frames=frames,
        window=None if isinstance(window, Lut) else window,
        voi_lut=True if isinstance(window, Lut) else None,
    )
