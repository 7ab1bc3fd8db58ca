"""Files in, decisions out: the one line that handler, command line and benchmark call."""

from __future__ import annotations

import base64
import io
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from medad_serve.artifact import load_manifest
from medad_serve.calibration import Decider, Decision, parse_aggregation
from medad_serve.errors import InputError, place_of
from medad_serve.io import DEFAULT_LIMITS, Limits, Lut, Pixels
from medad_serve.io.guarded import decoded
from medad_serve.overlay import encode_png, overlay
from medad_serve.prep import (
    Prepared,
    Shown,
    check_input,
    check_tensor,
    display,
    prepare,
    unfamiliar,
    window_of,
)
from medad_serve.prep.geometry import Plane, Volume
from medad_serve.result import Heatmap, HeatmapFormat, InputFacts, ItemResult, Options, Result
from medad_serve.runtime import FloatArray, Outputs, batches, joined, may_mix, mixed_batches, open_runtime
from medad_serve.spec import Calibration, Manifest, Window

__all__ = ["Decoder", "HeatmapFormat", "ItemResult", "Options", "Predictor", "Result", "Source"]

logger = logging.getLogger(__name__)
Source = bytes | Path | tuple[bytes, ...] | NDArray[np.float32]
"""One file; the files of one series; or a prepared tensor ``(N, C, *S)`` as the graph takes it."""
DETAILS = ("probability", "severity")
"""Outputs beside the score that an answer tells, where the model has them."""
HELD_BYTES = 256 * 2**20
"""Of tensors and pixels that wait for their answers together: more are answered in between."""


class Decoder(Protocol):
    """Decodes the sources of a batch in order, one when it is asked for the next."""

    def __call__(self, sources: Sequence[bytes | Path | tuple[bytes, ...]]) -> Iterable[Pixels | InputError]:
        """Yield pixels, or why there are none, for each source."""
        ...


@dataclass
class _Item:
    """One item on its way through the line; its pixels are kept only where an overlay will be drawn on them."""

    index: int
    facts: InputFacts
    warnings: tuple[str, ...]
    pixels: Pixels | None
    prepared: Prepared
    options: Options
    timing: dict[str, float]

    @property
    def held_bytes(self) -> int:
        return self.prepared.tensor.nbytes + (0 if self.pixels is None else self.pixels.array.nbytes)


@dataclass(frozen=True)
class _Found:
    """What the graph says of one item: of each slice, volume or region, and the heatmap of the highest score."""

    outputs: Outputs
    heatmap: FloatArray | None = None


class Predictor:
    """A verified artifact with its runtime open; thread-safe where runtime (onnxruntime, torch) and decoder are."""

    def __init__(
        self, directory: Path, *, runtime: str, threads: int, device: str, decoder: Decoder | None, limits: Limits
    ) -> None:
        self.manifest: Manifest = load_manifest(directory)
        self.calibration: Calibration = self.manifest.calibration_of(runtime, directory)
        names = [o.name for o in self.manifest.outputs]
        self.runtime = open_runtime(directory, runtime, names, threads=threads, device=device)
        self.limits = limits
        self.decoder: Decoder = decoder or self._decode_here
        self.details = [name for name in DETAILS if name in names]
        self.aggregate = parse_aggregation(self.calibration.aggregation)
        self.item_level = Decider(self.calibration.item)
        self.patient_level = Decider(self.calibration.patient)
        self._may_mix: bool | None = None

    @classmethod
    def load(
        cls,
        artifact: Path,
        *,
        runtime: str = "onnx",
        threads: int = 0,
        device: str = "cpu",
        decoder: Decoder | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> Predictor:
        """Open an artifact directory; ``decoder`` None decodes in this process, bound by ``limits`` alone.

        Raises MedadError naming what is missing or altered.
        """
        return cls(artifact, runtime=runtime, threads=threads, device=device, decoder=decoder, limits=limits)

    def _decode_here(self, sources: Sequence[bytes | Path | tuple[bytes, ...]]) -> Iterator[Pixels | InputError]:
        return (decoded(source, self.limits) for source in sources)

    def warm_up(self) -> None:
        """Run the graph on made-up items, so that the first to ask need not wait for what happens once."""
        logger.info("items share calls of the graph: %s", "yes" if self.mixes else "no")

    @property
    def mixes(self) -> bool:
        """Whether items of several sources share calls of the graph, tried at first use: see :func:`may_mix`."""
        if self._may_mix is None:
            names = ["score", *self.details]
            self._may_mix = may_mix(self.runtime, self.manifest.input_shape, self.manifest.prep.values, names)
        return self._may_mix

    def predict(self, items: Sequence[Source], options: Sequence[Options] | None = None) -> list[Result | InputError]:
        """Answer every item in order; an item that cannot be used gets its InputError, the others their result.

        An item's answer does not depend on its neighbours, to the last bit; of several large ones no more than
        ``HELD_BYTES`` and one are held at a time.
        """
        answers: dict[int, Result | InputError] = {}
        waiting: list[_Item] = []
        for index, item in self._read_all(items, options or [Options()] * len(items)):
            if isinstance(item, InputError):
                answers[index] = item
                continue
            waiting.append(item)
            if sum(each.held_bytes for each in waiting) > HELD_BYTES:
                answers |= self._answer_all(waiting)
                waiting = []
        answers |= self._answer_all(waiting)
        return [answers[index] for index in range(len(items))]

    def _read_all(
        self, items: Sequence[Source], options: Sequence[Options]
    ) -> Iterator[tuple[int, _Item | InputError]]:
        """Yield items as they are read: prepared ones first, then files from the smallest on.

        So a file that takes all of its time for decoding leaves its smaller neighbours theirs.
        """
        files: list[tuple[int, bytes | Path | tuple[bytes, ...]]] = []
        for index, (item, option) in enumerate(zip(items, options, strict=True)):
            try:
                if option.policy is not None:
                    self._check_policy(option.policy)
                if isinstance(item, np.ndarray):
                    yield index, self._take(index, item, option)
                else:
                    files.append((index, item))
            except InputError as error:
                yield index, error
        files.sort(key=lambda file: _size(file[1]))
        pixels = iter(self.decoder([source for _, source in files]))
        for index, _ in files:
            start = time.perf_counter()
            found = next(pixels)
            ms = (time.perf_counter() - start) * 1e3
            yield index, found if isinstance(found, InputError) else self._read(index, found, options[index], ms)

    def _take(self, index: int, tensor: NDArray[np.float32], options: Options) -> _Item:
        """Check a prepared tensor."""
        check_tensor(tensor.shape, self.manifest.input_shape)
        if not np.isfinite(tensor).all():
            raise InputError(422, "the values are not all finite numbers", "Send a tensor without NaN")
        self._check_room(len(tensor))
        if options.heatmap == "png":
            raise InputError(422, "a tensor has no source pixels to draw on", "Ask for the heatmap as npy")
        size = tensor.shape[2:]
        frames, rows, columns = (1, *size)[-3:]
        where = Volume((frames, rows, columns)) if len(size) == 3 else Plane((rows, columns))
        prepared = Prepared(np.ascontiguousarray(tensor, np.float32), (where,) * len(tensor))
        return _Item(
            index=index,
            facts=InputFacts(
                kind="tensor", modality="", rows=rows, columns=columns, frames=frames * len(tensor), window=None
            ),
            warnings=self._warnings((), prepared),
            pixels=None,
            prepared=prepared,
            options=options,
            timing={"decode": 0.0, "prepare": 0.0},
        )

    def _read(self, index: int, pixels: Pixels, options: Options, decode_ms: float) -> _Item | InputError:
        start = time.perf_counter()
        try:
            check_input(pixels, self.manifest.input, self.manifest.prep)
            if not self.manifest.prep.is_volume:
                self._check_room(pixels.frames)
            prepared = prepare(pixels, self.manifest.prep)
            return _Item(
                index=index,
                facts=_facts(pixels, window_of(pixels, self.manifest.prep.window)),
                warnings=self._warnings(pixels.facts.notes, prepared),
                pixels=pixels if options.heatmap == "png" else None,
                prepared=prepared,
                options=options,
                timing={"decode": decode_ms, "prepare": (time.perf_counter() - start) * 1e3},
            )
        except InputError as error:
            return error
        except MemoryError:
            return InputError(413, "the image does not fit into memory", "Send fewer or smaller frames")
        except Exception as error:  # a fault of ours must not cost the neighbours their answers
            fault = f"{type(error).__name__} at {place_of(error)}"
            return InputError(500, f"internal fault while preparing ({fault})", "Report this file's format")

    def _check_policy(self, policy: str) -> None:
        made = self.item_level.cutoffs.keys() & self.patient_level.cutoffs.keys()
        if policy not in made:
            raise InputError(
                422, "the policy asked for was not calibrated", f"This model has: {', '.join(sorted(made))}"
            )

    def _check_room(self, items: int) -> None:
        """Refuse more items than may lie prepared in memory: small frames can be prepared to large ones."""
        most = self.limits.max_values // int(np.prod(self.manifest.input_shape))
        if items > most:
            raise InputError(413, f"there are more than {most} {self.manifest.prep.unit}s", "Send fewer")

    def _answer_all(self, items: list[_Item]) -> dict[int, Result | InputError]:
        start = time.perf_counter()
        found = self._infer(items)
        infer = (time.perf_counter() - start) * 1e3
        answers: dict[int, Result | InputError] = {}
        for item in items:
            item.timing["infer"] = infer
            answers[item.index] = self._answer(item, found[item.index])
        return answers

    def _infer(self, items: list[_Item]) -> dict[int, _Found]:
        """Run the graph over items, together where that changes nothing; heatmaps for those alone who ask."""
        mixes = sum(len(item.prepared.tensor) for item in items) > 1 and self.mixes
        names = ["score", *self.details]
        found: dict[int, _Found] = {}
        shared: list[_Item] = []
        for item in items:
            if item.options.heatmap != "none":
                found[item.index] = self._infer_with_heatmap(item.prepared.tensor, names, mixes)
            elif mixes:
                shared.append(item)
            else:
                # a series is always cut in the same way, and its rows come out as they do without neighbours
                found[item.index] = _Found(joined([o for _, o in batches(self.runtime, item.prepared.tensor, names)]))
        if shared:
            tensor = np.concatenate([item.prepared.tensor for item in shared])
            outputs = joined([found for _, found in mixed_batches(self.runtime, tensor, names)])
            row = 0
            for item in shared:
                rows = slice(row, row + len(item.prepared.tensor))
                row = rows.stop
                found[item.index] = _Found({name: values[rows] for name, values in outputs.items()})
        return found

    def _infer_with_heatmap(self, tensor: FloatArray, names: list[str], mixes: bool) -> _Found:
        """Keep the heatmap of the highest score alone: those of a series would fill the memory."""
        cut = mixed_batches if mixes else batches
        parts: list[Outputs] = []
        heatmap, highest = None, -np.inf
        for _, outputs in cut(self.runtime, tensor, [*names, "heatmap"]):
            maps = outputs.pop("heatmap")
            parts.append(outputs)
            top = int(np.argmax(outputs["score"]))
            if heatmap is None or outputs["score"][top] > highest:
                heatmap, highest = maps[top, 0].copy(), outputs["score"][top]
        return _Found(joined(parts), heatmap)

    def _answer(self, item: _Item, found: _Found) -> Result | InputError:
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
            slices=_item_results(each, details) if is_patient and not regions else None,
            regions=_item_results(each, details, regions) if regions else None,
            heatmap=None if found.heatmap is None else self._heatmap(item, found.heatmap, highest),
            input=item.facts,
            warnings=item.warnings,
            timing_ms={name: round(ms, 3) for name, ms in item.timing.items()},
        )

    def _warnings(self, notes: tuple[str, ...], prepared: Prepared) -> tuple[str, ...]:
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

    def _heatmap(self, item: _Item, heatmap: FloatArray, highest: int) -> Heatmap:
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

    def _window(self, item: _Item) -> Shown:
        """Return the window that the item was prepared with: regions have their own."""
        prep = self.manifest.prep
        return prep.regions.window if item.prepared.regions and prep.regions else prep.window


def _size(source: bytes | Path | tuple[bytes, ...]) -> int:
    if isinstance(source, Path):
        try:
            return source.stat().st_size
        except OSError:  # told when it is decoded
            return 0
    return sum(map(len, source)) if isinstance(source, tuple) else len(source)


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
