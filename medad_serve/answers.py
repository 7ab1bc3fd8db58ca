"""What the graph says of an item, decided and told: by the cutoffs, p-values and ranges of its calibration."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from medad_serve.calibration import Decider, Decision, parse_aggregation
from medad_serve.errors import InputError
from medad_serve.io import LeftOut, Pixels
from medad_serve.overlay import encode_png, overlay
from medad_serve.prep import Prepared, Shown, display, unfamiliar
from medad_serve.result import Heatmap, InputFacts, ItemResult, Options, Result
from medad_serve.runtime import FloatArray
from medad_serve.scoring import Found
from medad_serve.spec import Calibration, Manifest


@dataclass
class Item:
    """One item on its way through the line; its pixels are kept only where an overlay will be drawn on them."""

    index: int
    facts: InputFacts
    notes: tuple[str, ...]
    pixels: Pixels | None
    prepared: Prepared
    options: Options
    timing: dict[str, float]
    sources: tuple[int, ...] = ()
    """Of its slices, as :attr:`Facts.sources`; empty where there are none."""
    left_out: tuple[LeftOut, ...] = ()

    @property
    def held_bytes(self) -> int:
        """What is held of it until it is answered."""
        return self.prepared.tensor.nbytes + (0 if self.pixels is None else self.pixels.array.nbytes)


class Answers:
    """Makes the answers of one artifact and one of its calibrations."""

    def __init__(self, manifest: Manifest, calibration: Calibration, details: Sequence[str]) -> None:
        """``details`` are the outputs beside the score that an answer tells."""
        self.manifest = manifest
        self.calibration = calibration
        self.details = details
        self.aggregate = parse_aggregation(calibration.aggregation)
        self.item_level = Decider(calibration.item)
        self.patient_level = Decider(calibration.patient)

    def check_policy(self, policy: str | None) -> None:
        """Raise InputError 422 for a policy that was not calibrated; None stands for the artifact's own."""
        made = self.item_level.cutoffs.keys() & self.patient_level.cutoffs.keys()
        if policy is not None and policy not in made:
            raise InputError(
                422, "the policy asked for was not calibrated", f"This model has: {', '.join(sorted(made))}"
            )

    def answer(self, item: Item, found: Found) -> Result | InputError:
        """Decide one item by what the graph says of it."""
        scores = found.outputs["score"].astype(np.float64)
        if not np.isfinite(scores).all():
            return InputError(422, "the model's score is not finite", "Check that the pixel values are plausible")
        policy = item.options.policy or self.manifest.default_policy
        regions = item.prepared.regions
        each = [self.item_level.decide(float(s), policy) for s in scores]
        details = {name: found.outputs[name].astype(np.float64) for name in self.details}
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
            slices=_item_results(each, details, sources=item.sources) if is_patient and not regions else None,
            regions=_item_results(each, details, regions=regions) if regions else None,
            heatmap=None if found.heatmap is None else self._heatmap(item, found.heatmap, highest),
            input=item.facts,
            left_out=item.left_out or None,
            warnings=self._warnings(item.notes, item.prepared),
            timing_ms={name: round(ms, 3) for name, ms in item.timing.items()},
        )

    def _warnings(self, notes: tuple[str, ...], prepared: Prepared) -> tuple[str, ...]:
        """Return what a reader of the answer should know: ``notes`` of decoding, and what is unusual of the item.

        Told when the items of a batch are answered, one after another: among decoding and preparing, whose code and
        pixels push its own out of the processor's caches, it takes twice as long.
        """
        fewest, most = self.calibration.items_per_patient
        warnings = [*notes, *prepared.notes]
        warnings += unfamiliar(prepared.tensor, self.manifest.prep, self.calibration.inputs)
        items = len(prepared.tensor)
        if (items > 1 or prepared.regions) and not fewest <= items <= most:
            unit = self.manifest.prep.unit + "s" * (items > 1)
            warnings.append(f"{items} {unit}; the patient cutoff was calibrated on patients with {fewest} to {most}")
        if float(np.ptp(prepared.tensor)) == 0:
            warnings.append("the image is blank within the window: its score says nothing")
        return tuple(warnings)

    def _heatmap(self, item: Item, heatmap: FloatArray, highest: int) -> Heatmap:
        on_source = item.prepared.geometries[highest].to_source(heatmap)
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

    def _window(self, item: Item) -> Shown:
        """Return the window that the item was prepared with: regions have their own."""
        prep = self.manifest.prep
        return prep.regions.window if item.prepared.regions and prep.regions else prep.window


def _item_results(
    decisions: list[Decision],
    details: dict[str, NDArray[np.float64]],
    *,
    regions: tuple[str, ...] = (),
    sources: tuple[int, ...] = (),
) -> tuple[ItemResult, ...]:
    return tuple(
        ItemResult(
            index=i,
            source=source,
            region=name,
            score=d.score,
            p_value=d.p_value,
            anomalous=d.anomalous,
            **{detail: float(values[i]) for detail, values in details.items()},
        )
        for i, (d, name, source) in enumerate(zip_longest(decisions, regions, sources))
    )
