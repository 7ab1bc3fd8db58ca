"""TorchServe's counters, read twice: what lies between the two is of one load."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from medad_serve.server.tls import trusting

_LINE = re.compile(r'^(\w+)\{(?:.*,)?model_name="([^"]*)"([^}]*)\} (\S+)$', re.MULTILINE)
_SIZE = re.compile(r'\bsize="(\d+)"')
_HOW = re.compile(r'\bhow="(\w+)"')


@dataclass(frozen=True)
class Counters:
    """Of one model since its server started."""

    requests: float = 0
    queue_ms: float = 0
    """Summed over requests, that they waited for a worker."""
    served_ms: float = 0
    """From when TorchServe had them to when it had their answers."""
    batches: Counter[int] = field(default_factory=Counter)
    """How many, by requests in them."""
    losses: Counter[str] = field(default_factory=Counter)
    """Decoder processes that were lost, by how."""

    def since(self, before: Counters) -> Counters:
        """Return what came after ``before``."""
        return Counters(
            self.requests - before.requests,
            self.queue_ms - before.queue_ms,
            self.served_ms - before.served_ms,
            self.batches - before.batches,
            self.losses - before.losses,
        )


def read_counters(url: str, model: str, ca: Path | None = None) -> Counters | None:
    """Read them from a metrics address; None where there are none to read."""
    try:
        answer = httpx.get(
            f"{url.rstrip('/')}/metrics", verify=trusting(ca) if ca else True, timeout=10, trust_env=False
        )
        answer.raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL):
        return None
    return counters_of(answer.text, model)


def counters_of(text: str, model: str) -> Counters:
    """Take them from Prometheus' text format."""
    sums: dict[str, float] = {}
    batches: Counter[int] = Counter()
    losses: Counter[str] = Counter()
    for name, of, labels, value in _LINE.findall(text):
        if of != model:
            continue
        if name == "medad_batches_total" and (size := _SIZE.search(labels)):
            batches[int(size[1])] += round(float(value))
        if name == "medad_decoder_losses_total" and (how := _HOW.search(labels)):
            losses[how[1]] += round(float(value))
        sums[name] = sums.get(name, 0.0) + float(value)
    return Counters(
        requests=sums.get("ts_inference_requests_total", 0.0),
        queue_ms=sums.get("ts_queue_latency_microseconds", 0.0) / 1e3,
        served_ms=sums.get("ts_inference_latency_microseconds", 0.0) / 1e3,
        batches=batches,
        losses=losses,
    )
