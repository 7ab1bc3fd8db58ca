"""Files in, decisions out: the one line that handler, command line and benchmark call."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from medad_serve.answers import Answers, Item
from medad_serve.artifact import load_manifest
from medad_serve.deadline import NEVER, Deadline, Pace, Postponed, late
from medad_serve.errors import InputError, place_of
from medad_serve.io import DEFAULT_LIMITS, Limits, Lut, Pixels
from medad_serve.io.guarded import decoded
from medad_serve.prep import (
    Prepared,
    check_input,
    check_tensor,
    prepare,
    window_of,
)
from medad_serve.prep.geometry import Plane, Volume
from medad_serve.result import HeatmapFormat, InputFacts, ItemResult, Options, Result
from medad_serve.runtime import OpenVinoRuntime, check_reproduces, open_runtime, probe
from medad_serve.scoring import Rows, Scorer
from medad_serve.spec import Calibration, Manifest, Window, full_name

__all__ = ["Decoder", "HeatmapFormat", "ItemResult", "Options", "Predictor", "Result", "Source"]

logger = logging.getLogger(__name__)
_File = bytes | Path | tuple[bytes, ...]
Source = _File | NDArray[np.float32]
"""One file; the files of one series; or a prepared tensor ``(N, C, *S)`` as the graph takes it."""
DETAILS = ("probability", "severity")
"""Outputs beside the score that an answer tells, where the model has them."""
HELD_BYTES = 256 * 2**20
"""Of tensors and pixels that wait for their answers together: more are answered in between."""
HELD_S = 1.0
"""Seconds of the graph that wait likewise; sharing a call pays for graphs of a few milliseconds alone."""
_RELEASED = b""


class Decoder(Protocol):
    """Decodes the sources of a batch in order, one when it is asked for the next."""

    def __call__(self, sources: Sequence[_File], deadline: Deadline) -> Iterable[Pixels | InputError]:
        """Yield pixels, or why there are none, for each source; :class:`Postponed` where alone it may have them.

        A source is not looked at again once its answer is there: the caller may put another in its place.
        """
        ...


@dataclass
class _Batch:
    """What is asked at once, and what of it has been read and waits for the graph."""

    sources: list[Source]
    options: Sequence[Options]
    deadline: Deadline
    has_scored: bool = False
    waiting: list[Item] = field(default_factory=list)

    @property
    def waiting_rows(self) -> int:
        return sum(len(item.prepared.tensor) for item in self.waiting)

    def own_s(self, ms: float) -> float:
        """Return in seconds what an item has taken; without neighbours it had all of the batch's time."""
        return ms / 1e3 if len(self.sources) > 1 else math.inf


class Predictor:
    """A verified artifact with its runtime open; thread-safe where runtime (onnxruntime, torch) and decoder are."""

    def __init__(
        self,
        directory: Path,
        *,
        runtime: str | None,
        threads: int,
        device: str,
        decoder: Decoder | None,
        limits: Limits,
    ) -> None:
        self.manifest: Manifest = load_manifest(directory)
        self.variant = full_name(runtime or self.manifest.default_variant)
        self.calibration: Calibration = self.manifest.calibration_of(self.variant, directory)
        names = [o.name for o in self.manifest.outputs]
        session = self.manifest.session_of(self.variant)
        self.runtime = open_runtime(directory, self.variant, names, threads=threads, device=device, session=session)
        self.limits = limits
        self.decoder: Decoder = decoder or self._decode_here
        self.details = [name for name in DETAILS if name in names]
        self.answers = Answers(self.manifest, self.calibration, self.details)
        shape, values = self.manifest.input_shape, self.manifest.prep.values
        self.scorer = Scorer(self.runtime, shape, values, self.details, batch=session.batch)
        self._preparing = Pace()

    @classmethod
    def load(
        cls,
        artifact: Path,
        *,
        runtime: str | None = None,
        threads: int = 0,
        device: str = "cpu",
        decoder: Decoder | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> Predictor:
        """Open an artifact directory with a variant such as ``onnx`` or ``openvino/int8``; None takes the tuned one.

        ``decoder`` None decodes in this process, bound by ``limits`` alone. Raises MedadError naming what is missing
        or altered.
        """
        return cls(artifact, runtime=runtime, threads=threads, device=device, decoder=decoder, limits=limits)

    def _decode_here(self, sources: Sequence[_File], deadline: Deadline) -> Iterator[Pixels | InputError]:
        for source in sources:
            yield decoded(source, self.limits) if deadline.left() > 0 else Postponed()

    def warm_up(self) -> None:
        """Run the graph on made-up items, so that the first to ask need not wait for what happens once.

        Raises MedadError where the scores are not those of the machine that calibrated them.
        """
        if isinstance(self.runtime, OpenVinoRuntime):
            self.runtime.compile(self.scorer.most)
        if expected := self.manifest.probes.get(self.variant):
            found = probe(self.runtime, self.manifest.input_shape, self.manifest.prep.values)
            check_reproduces(found, expected, self.variant)
        logger.info("items share calls of the graph: %s", "yes" if self.scorer.mixes else "no")

    def predict(
        self, items: Iterable[Source], options: Sequence[Options] | None = None, deadline: Deadline = NEVER
    ) -> list[Result | InputError]:
        """Answer every item in order; an item that cannot be used gets its InputError, the others their result.

        An item's answer does not depend on its neighbours, to the last bit; of several large ones no more than
        ``HELD_BYTES`` and one are held at a time, and of files that ``items`` hands over without keeping them none
        once it is decoded. What cannot be answered until ``deadline`` is :class:`Postponed`, or 413 where alone
        it could not be either. Decoding and the graph keep it, preparing one item is not broken off.
        """
        sources = list(items)
        batch = _Batch(sources, options or [Options()] * len(sources), deadline)
        answers = self._round(batch, range(len(sources)))
        for index, answer in sorted(answers.items()):
            if isinstance(answer, Postponed) and answer.given_s < deadline.left():
                answers |= self._round(batch, [index])
        return [answers[index] for index in range(len(sources))]

    def _round(self, batch: _Batch, indices: Sequence[int]) -> dict[int, Result | InputError]:
        """Answer some items of a batch together."""
        answers: dict[int, Result | InputError] = {}
        for index, item in self._read_all(batch, indices):
            if isinstance(item, InputError):
                answers[index] = item
                continue
            batch.waiting.append(item)
            held_s = self.scorer.pace.expects(batch.waiting_rows)
            if held_s > HELD_S or sum(each.held_bytes for each in batch.waiting) > HELD_BYTES:
                answers |= self._answer_waiting(batch)
        return answers | self._answer_waiting(batch)

    def _read_all(self, batch: _Batch, indices: Sequence[int]) -> Iterator[tuple[int, Item | InputError]]:
        """Yield items as they are read: prepared ones first, then files from the smallest on.

        So a file that takes all of its time for decoding leaves its smaller neighbours theirs.
        """
        files: list[tuple[int, _File]] = []
        for index in indices:
            source = batch.sources[index]
            try:
                self.answers.check_policy(batch.options[index].policy)
            except InputError as error:
                yield index, error
                continue
            if isinstance(source, np.ndarray):
                yield index, self._item(batch, index, source, 0.0)
            else:
                files.append((index, source))
        files.sort(key=lambda file: _size(file[1]))
        order = [index for index, _ in files]
        undecoded = [source for _, source in files]
        del files
        pixels = iter(self.decoder(undecoded, batch.deadline))
        for number, index in enumerate(order):
            start = time.perf_counter()
            found = next(pixels)
            ms = (time.perf_counter() - start) * 1e3
            undecoded[number] = _RELEASED
            if not isinstance(found, Postponed):
                batch.sources[index] = _RELEASED
            yield index, found if isinstance(found, InputError) else self._item(batch, index, found, ms)

    def _item(
        self, batch: _Batch, index: int, given: Pixels | NDArray[np.float32], decode_ms: float
    ) -> Item | InputError:
        """Check and prepare one item, where there is time for it."""
        try:
            if isinstance(given, np.ndarray):
                return self._take(index, given, batch.options[index])
            return self._read(batch, index, given, decode_ms)
        except InputError as error:
            return error
        except MemoryError:
            return InputError(413, "the image does not fit into memory", "Send fewer or smaller frames")
        except Exception as error:  # a fault of ours must not cost the neighbours their answers
            return _fault(error, "preparing")

    def _take(self, index: int, tensor: NDArray[np.float32], options: Options) -> Item:
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
        return Item(
            index=index,
            facts=InputFacts(
                kind="tensor", modality="", rows=rows, columns=columns, frames=frames * len(tensor), window=None
            ),
            notes=(),
            pixels=None,
            prepared=prepared,
            options=options,
            timing={"decode": 0.0, "prepare": 0.0},
        )

    def _read(self, batch: _Batch, index: int, pixels: Pixels, decode_ms: float) -> Item:
        """Check and prepare what was decoded."""
        options = batch.options[index]
        check_input(pixels, self.manifest.input, self.manifest.prep)
        if not self.manifest.prep.is_volume:
            self._check_room(pixels.frames)
        self._check_time(batch, pixels, decode_ms)
        start = time.perf_counter()
        prepared = prepare(pixels, self.manifest.prep)
        self._preparing.took(time.perf_counter() - start, pixels.array.size)
        return Item(
            index=index,
            facts=_facts(pixels, window_of(pixels, self.manifest.prep.window)),
            notes=pixels.facts.notes,
            pixels=pixels if options.heatmap == "png" else None,
            prepared=prepared,
            options=options,
            timing={"decode": decode_ms, "prepare": (time.perf_counter() - start) * 1e3},
            sources=() if self.manifest.prep.is_volume else pixels.facts.sources,
            left_out=pixels.facts.left_out,
        )

    def _check_time(self, batch: _Batch, pixels: Pixels, decode_ms: float) -> None:
        """Refuse to begin what, by what such work took lately, cannot end in time beside what waits already."""
        rows = 1 if self.manifest.prep.is_volume else pixels.frames
        needs_s = self._preparing.expects(pixels.array.size) + self.scorer.pace.expects(batch.waiting_rows + rows)
        left_s = batch.deadline.left()
        if left_s <= 0:
            raise late(batch.own_s(decode_ms), batch.deadline)
        if (batch.waiting or batch.has_scored) and left_s < needs_s:  # the first is begun in any case: see Scorer.score
            raise Postponed()

    def _check_room(self, items: int) -> None:
        """Refuse more items than may lie prepared in memory: small frames can be prepared to large ones."""
        most = self.limits.max_values // int(np.prod(self.manifest.input_shape))
        if items > most:
            raise InputError(413, f"there are more than {most} {self.manifest.prep.unit}s", "Send fewer")

    def _answer_waiting(self, batch: _Batch) -> dict[int, Result | InputError]:
        items, batch.waiting = batch.waiting, []
        if not items:
            return {}
        try:
            return self._answer_all(batch, items)
        except Exception as error:  # as in preparing
            if len(items) == 1:
                return {items[0].index: _fault(error, "scoring")}
            logger.error("items failed together, each is tried alone: %s at %s", type(error).__name__, place_of(error))
        answers: dict[int, Result | InputError] = {}
        for item in items:
            batch.waiting = [item]
            answers |= self._answer_waiting(batch)
        return answers

    def _answer_all(self, batch: _Batch, items: list[Item]) -> dict[int, Result | InputError]:
        start = time.perf_counter()
        rows = [
            Rows(item.prepared.tensor, item.options.heatmap != "none", batch.own_s(sum(item.timing.values())))
            for item in items
        ]
        found = self.scorer.score(rows, batch.deadline, has_begun=batch.has_scored)
        batch.has_scored = True
        infer = (time.perf_counter() - start) * 1e3
        answers: dict[int, Result | InputError] = {}
        for item, said in zip(items, found, strict=True):
            item.timing["infer"] = infer
            answers[item.index] = said if isinstance(said, InputError) else self.answers.answer(item, said)
        return answers


def _fault(error: Exception, doing: str) -> InputError:
    """Return the answer to a fault of ours: where it happened and never what it says, which could quote the input."""
    fault = f"internal fault while {doing} ({type(error).__name__} at {place_of(error)})"
    return InputError(507 if isinstance(error, MemoryError) else 500, fault, "Send it again; if it stays, report it")


def _size(source: _File) -> int:
    if isinstance(source, Path):
        try:
            return source.stat().st_size
        except OSError:  # told when it is decoded
            return 0
    return sum(map(len, source)) if isinstance(source, tuple) else len(source)


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
