"""What a worker tells TorchServe's metrics: counts that add up over workers, and how far its scores have drifted.

Each update is a line that TorchServe parses, so counters are told once a batch and gauges every other second at
most. Counters live in TorchServe and outlast a worker. The window behind the gauges lives in the worker: each
watches what it answered itself, under its own ``worker`` label, and one that starts anew starts with an empty one.
"""

from __future__ import annotations

import logging
import math
import re
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import median
from typing import Any, Literal

from medad_serve.errors import InputError, place_of
from medad_serve.predictor import Result
from medad_serve.serving.drift import DriftWindow
from medad_serve.spec import Calibration, LevelCalibration

logger = logging.getLogger(__name__)

Answers = Sequence[tuple[int, Result | InputError]]
Band = Literal["low", "middle", "anomalous"]
NO_LOSSES: Mapping[str, int] = {}
EVERY_S = 2.0
"""Seconds between two rounds of gauges."""


class Watch:
    """Counts what one worker answers; a fault in here is logged and costs no answer."""

    def __init__(self, calibration: Calibration, metrics: Any | None = None, *, every_s: float = EVERY_S) -> None:
        """Watch answers decided by ``calibration``; ``metrics`` is TorchServe's ``context.metrics``.

        Metrics that its settings do not declare (metrics.yaml of this package) are not told.
        """
        self.item, self.patient = _Edges.of(calibration.item), _Edges.of(calibration.patient)
        self.window = DriftWindow(calibration.item)
        self.every_s = every_s
        self.told = -every_s
        self.losses: Counter[str] = Counter()
        cache = getattr(metrics, "cache", {})
        self.metrics = {name: metric for group in cache.values() for name, metric in group.items()}
        self.model = str(getattr(metrics, "model_name", ""))
        self.worker = worker_of(sys.argv)
        try:
            self._tell_gauges()  # a worker that starts anew takes back what the one before it said
        except Exception as error:  # as in record
            _log_fault(error)

    def record(
        self, answers: Answers, batch_ms: Mapping[str, float], batch: int, losses: Mapping[str, int] = NO_LOSSES
    ) -> None:
        """Count one batch: status and answer of each item, milliseconds by stage, requests in the batch.

        ``losses`` are those of decoder processes since the worker started, by how they were lost.
        """
        try:
            self._record(answers, batch_ms, batch)
            self._tell_losses(losses)
        except Exception as error:  # the answers are there: watching must not cost them
            _log_fault(error)

    def _record(self, answers: Answers, batch_ms: Mapping[str, float], batch: int) -> None:
        codes = Counter(int(code) for code, _ in answers)
        bands = Counter(self._take(answer) for _, answer in answers if isinstance(answer, Result))
        for stage, ms in batch_ms.items():
            self._tell("medad_stage_milliseconds_total", ms, stage)
        for code, count in codes.items():
            self._tell("medad_requests_total", count, code)
        for band, count in bands.items():
            self._tell("medad_answers_total", count, band)
        self._tell("medad_batches_total", 1, batch)
        if time.monotonic() - self.told >= self.every_s:
            self._tell_gauges()

    def _tell_losses(self, losses: Mapping[str, int]) -> None:
        now = Counter(losses)
        for how, count in (now - self.losses).items():
            self._tell("medad_decoder_losses_total", count, how)
        self.losses = now

    def _take(self, answer: Result) -> Band:
        """Put one answer into the window; return its band."""
        parts = answer.slices or answer.regions
        band = (self.patient if answer.level == "patient" else self.item).band(answer.score)
        scores = [part.score for part in parts] if parts else [answer.score]
        self.window.add(scores, whole=parts is not None, anomalous=band == "anomalous")
        return band

    def _tell_gauges(self) -> None:
        self.told = time.monotonic()
        for name, value in asdict(self.window.state()).items():
            # what cannot be told yet is 0: TorchServe's pattern of a line takes no other word for it
            self._tell(f"medad_drift_{name}", value if value is not None and math.isfinite(value) else 0, self.worker)

    def _tell(self, name: str, value: float, label: object) -> None:
        if name in self.metrics:
            self.metrics[name].add_or_update(round(float(value), 6), [self.model, str(label)])


@dataclass(frozen=True)
class _Edges:
    """Where the bands of one level begin."""

    middle: float
    anomalous: float

    @classmethod
    def of(cls, level: LevelCalibration) -> _Edges:
        """Take the median of the normals and the cutoff of the default policy, whatever policy an answer is by."""
        return cls(median(level.normal_scores), level.cutoffs[0].value)

    def band(self, score: float) -> Band:
        if score >= self.anomalous:
            return "anomalous"
        return "middle" if score >= self.middle else "low"


def worker_of(arguments: Sequence[str]) -> str:
    """Return the number that TorchServe gave this process, which a restarted worker takes over; ``0`` elsewhere."""
    given = dict(pairwise(arguments))
    found = re.search(r"\d+$", given.get("--sock-name") or given.get("--port") or "")
    return found.group() if found else "0"


def _log_fault(error: Exception) -> None:
    logger.error("watching failed: %s at %s", type(error).__name__, place_of(error))
