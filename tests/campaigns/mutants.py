"""Other people's files and thousands of damaged ones against one real server, each in a batch with a good one.

    python tests/campaigns/mutants.py --mutants 10000 --json mutants.json

Sends every file of pydicom's and nibabel's test data, then seeded mutations of them and of the forms that
medad-serve reads (series as ZIP, PNG, JPEG, .npy). In every batch one item is good, and must be answered as it is
alone. Prints, and writes as JSON: codes by source and by mutation, batches by size, workers and decoder processes
lost and why. Ends with status 1 where anything was answered 5xx or not at all, a neighbour's answer moved by more
than 1e-6, or a worker was lost.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
import time
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import httpx
import nibabel
import numpy as np
import pydicom
from pydicom.uid import JPEG2000Lossless, RLELossless

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from campaign import finish, make_artifact, on_machine

from medad_serve.loadbench.counters import read_counters
from medad_serve.server import Ports, Server

PYDICOM = Path(pydicom.__file__).parent / "data" / "test_files"
NIBABEL = Path(nibabel.__file__).parent
BATCH = 8
TOLERANCE = 1e-6
NUMBERS = ("score", "p_value", "cutoff", "anomalous")

Source = tuple[str, bytes]
"""Kind and content."""


@dataclass
class Table:
    """What came back."""

    sent: int = 0
    codes: dict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    """By source and mutation."""
    moved: list[str] = field(default_factory=list)
    """Good items that were answered otherwise than alone."""
    server_faults: list[str] = field(default_factory=list)
    """Answers of 5xx, with what they say."""
    largest_difference: float = 0.0
    worker_pids: list[int] = field(default_factory=list)
    decoders_lost: Counter[str] = field(default_factory=Counter)
    """By how: hung, died or nonsense."""
    batches: dict[int, int] = field(default_factory=dict)
    """By size."""
    slowest_s: float = 0.0

    def add(self, row: str, code: int) -> None:
        self.sent += 1
        self.codes[row][code] += 1

    def to_json(self) -> dict[str, Any]:
        total: Counter[int] = Counter()
        for kind, counts in self.codes.items():
            if kind.startswith("file "):
                total += counts
        return {
            "sent": self.sent,
            "codes": {row: dict(sorted(counts.items())) for row, counts in sorted(self.codes.items())},
            "neighbours_moved": self.moved,
            "largest_relative_difference": self.largest_difference,
            "server_faults": self.server_faults,
            "worker_pids": self.worker_pids,
            "decoder_processes_lost": dict(self.decoders_lost),
            "batches_by_size": self.batches,
            "slowest_batch_s": round(self.slowest_s, 2),
        }

    @property
    def is_clean(self) -> bool:
        return not (self.moved or self.server_faults or len(self.worker_pids) != 1)


def corpus() -> Iterator[Source]:
    """Yield every file of the two packages' test data."""
    for path in sorted(PYDICOM.rglob("*")):
        if path.is_file():
            yield "pydicom", path.read_bytes()
    for path in sorted(NIBABEL.rglob("tests/data/**/*")):
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            yield "nibabel", path.read_bytes()


def forms(slices: list[bytes]) -> list[Source]:
    """Return every other form in which images are sent, made of CT slices."""
    first = pydicom.dcmread(io.BytesIO(slices[0]))
    grey = cv2.normalize(first.pixel_array.astype(np.float32), None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
    made: list[Source] = [(kind, cv2.imencode(f".{kind}", grey)[1].tobytes()) for kind in ("png", "jpg")]
    made.append(("zip", zipped(slices)))
    buffer = io.BytesIO()
    np.save(buffer, first.pixel_array)
    made.append(("npy", buffer.getvalue()))
    made.append(("nii", nibabel.Nifti1Image(np.stack([grey] * 8).astype(np.int16), np.eye(4)).to_bytes()))
    for kind, syntax in (("j2k", JPEG2000Lossless), ("rle", RLELossless)):
        ds = pydicom.dcmread(io.BytesIO(slices[1]))
        if syntax == RLELossless:
            ds.compress(syntax)
        else:
            import imagecodecs

            frame = imagecodecs.jpeg2k_encode(ds.pixel_array, level=0, codecformat="j2k", reversible=True)
            ds.PixelData = pydicom.encaps.encapsulate([bytes(frame)])
            ds["PixelData"].VR = "OB"
            ds.file_meta.TransferSyntaxUID = syntax
        out = io.BytesIO()
        ds.save_as(out)
        made.append((kind, out.getvalue()))
    return made


def zipped(members: Iterable[bytes]) -> bytes:
    """Return a ZIP of the members, under numbers."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for index, member in enumerate(members):
            archive.writestr(f"{index}.dcm", member)
    return buffer.getvalue()


def flip_bytes(data: bytearray, rng: np.random.Generator) -> bytearray:
    """Overwrite up to 64 bytes anywhere."""
    for at in rng.integers(0, len(data), rng.integers(1, 65)):
        data[at] = rng.integers(0, 256)
    return data


def flip_header(data: bytearray, rng: np.random.Generator) -> bytearray:
    """Overwrite up to 8 of the first 2000 bytes."""
    for at in rng.integers(0, min(len(data), 2000), rng.integers(1, 9)):
        data[at] = rng.integers(0, 256)
    return data


def cut_short(data: bytearray, rng: np.random.Generator) -> bytearray:
    """Keep a part from the beginning."""
    return data[: rng.integers(1, len(data))]


def cut_out(data: bytearray, rng: np.random.Generator) -> bytearray:
    """Leave a part from the middle out."""
    start, stop = sorted(rng.integers(0, len(data), 2))
    return data[:start] + data[stop:]


def repeat(data: bytearray, rng: np.random.Generator) -> bytearray:
    """Repeat a part up to 4 KiB in place."""
    start = int(rng.integers(0, len(data)))
    return data[:start] + data[start : start + int(rng.integers(1, 4097))] * 2 + data[start:]


EXTREMES = (0, 1, 2, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0xFFFFFFFE)
TAGS = [
    (0x28, e) for e in (2, 4, 6, 8, 0x10, 0x11, 0x30, 0x100, 0x101, 0x102, 0x103, 0x120, 0x1050, 0x1051, 0x1052, 0x1053)
]
TAGS += [(2, 0x10), (8, 5), (8, 0x60), (0x20, 0x32), (0x20, 0x37), (0x7FE0, 0x10), (0x5200, 0x9229), (0x28, 0x3010)]


def edit_tag(data: bytearray, rng: np.random.Generator) -> bytearray:
    """Overwrite length or value of an element that describes the pixels; of other formats, 4 aligned bytes."""
    group, element = TAGS[rng.integers(len(TAGS))]
    at = data.find(group.to_bytes(2, "little") + element.to_bytes(2, "little"))
    at = (
        int(rng.integers(0, max(1, min(len(data), 352) - 4))) & ~3 if at < 0 else at + int(rng.choice([4, 6, 8, 8, 12]))
    )
    width = int(rng.choice([2, 4]))
    data[at : at + width] = int(rng.choice(EXTREMES)).to_bytes(4, "little")[:width]
    return data


MUTATIONS: list[Callable[[bytearray, np.random.Generator], bytearray]] = [
    flip_bytes,
    flip_header,
    cut_short,
    cut_out,
    repeat,
    edit_tag,
]


def mutants(sources: list[Source], count: int, seed: int) -> Iterator[tuple[str, str, bytes]]:
    """Yield (kind of source, mutation, content); the same for the same seed."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        kind, data = sources[rng.integers(len(sources))]
        mutation = MUTATIONS[number % len(MUTATIONS)]
        yield kind, mutation.__name__, bytes(mutation(bytearray(data), rng)) if data else b""


def _difference(found: dict[str, Any], alone: dict[str, Any]) -> float:
    """Return the largest relative difference of two answers, slices included; infinite where they differ in kind."""
    if found.keys() != alone.keys():
        return float("inf")
    pairs = [(found[name], alone[name]) for name in NUMBERS]
    for a, b in zip(found.get("slices", ()), alone.get("slices", ()), strict=True):
        pairs += [(a[name], b[name]) for name in ("score", "p_value", "anomalous")]
    return max(abs(a - b) / max(abs(b), 1e-300) if a != b else 0.0 for a, b in pairs)


class Campaign:
    """Drives one model of a running server."""

    def __init__(self, server: Server, model: str, goods: list[bytes]) -> None:
        self.server, self.model = server, model
        self.key = json.loads(server.key_file.read_text())["management"]["key"]
        limits = httpx.Limits(max_connections=BATCH)
        self.http = httpx.Client(trust_env=False, timeout=300, limits=limits)
        self.pool = ThreadPoolExecutor(BATCH)
        self.table = Table(worker_pids=self._workers())
        self.goods = [(good, self._post(good)[1]) for good in goods]
        for _, alone in self.goods:
            assert "score" in alone, f"a good item is not: {alone}"

    def send(self, items: Iterable[tuple[str, str, bytes]]) -> Table:
        """Send items of (kind, mutation, content), each batch with one good item among them."""
        waiting = iter(items)
        number = 0
        while group := list(islice(waiting, BATCH - 1)):
            good, alone = self.goods[number % len(self.goods)]
            place = number % (len(group) + 1)
            bodies = [data for _, _, data in group]
            bodies.insert(place, good)
            start = time.monotonic()
            answers = list(self.pool.map(self._post, bodies))
            self.table.slowest_s = max(self.table.slowest_s, time.monotonic() - start)
            self._judge(answers.pop(place), alone, number)
            for (kind, mutation, data), (code, answer) in zip(group, answers, strict=True):
                self.table.add(f"file {kind}", code)
                self.table.codes[f"mutation {mutation}"][code] += 1
                if code >= 500:
                    self.table.server_faults.append(f"{code} {kind} {mutation} {len(data)} bytes: {answer}")
            number += 1
        return self.finish()

    def finish(self) -> Table:
        """Read what the server itself tells of workers, decoders and batches."""
        self.table.worker_pids = sorted({*self.table.worker_pids, *self._workers()})
        told = read_counters(self.server.url("metrics"), self.model)
        assert told is not None, "the server tells no metrics"
        self.table.decoders_lost = told.losses
        self.table.batches = dict(sorted(told.batches.items()))
        return self.table

    def _judge(self, found: tuple[int, dict[str, Any]], alone: dict[str, Any], number: int) -> None:
        code, answer = found
        difference = _difference(answer, alone) if code == 200 else float("inf")
        self.table.codes["good neighbour"][code] += 1
        self.table.largest_difference = max(self.table.largest_difference, difference)
        if difference > TOLERANCE:
            self.table.moved.append(f"batch {number}: {code} {answer if code != 200 else difference}")

    def _post(self, body: bytes) -> tuple[int, dict[str, Any]]:
        key = json.loads(self.server.key_file.read_text())["inference"]["key"]
        answer = self.http.post(
            f"{self.server.url('inference')}/predictions/{self.model}",
            content=body,
            headers={"Authorization": f"Bearer {key}", "Content-Type": "application/octet-stream"},
        )
        try:
            return answer.status_code, answer.json()
        except ValueError:
            return answer.status_code, {"text": answer.text[:200]}

    def _workers(self) -> list[int]:
        answer = httpx.get(
            f"{self.server.url('management')}/models/{self.model}",
            headers={"Authorization": f"Bearer {self.key}"},
            trust_env=False,
        )
        return [worker["pid"] for worker in answer.json()[0]["workers"]]


def main() -> int:
    """Run the whole campaign."""
    from medad_serve.export.archive import archive

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=Path("mutants.json"))
    asked = parser.parse_args()
    machine = on_machine()
    with tempfile.TemporaryDirectory(prefix="medad-mutants-") as folder:
        root = Path(folder)
        artifact, slices = make_artifact(root)
        archive(artifact, root / "store", name="mutants", batch_size=BATCH, max_batch_delay_ms=200)
        server = Server(root / "store", Ports.free())
        server.start()
        try:
            others = forms(slices)
            goods = [slices[0], next(data for kind, data in others if kind == "j2k"), zipped(slices)]
            campaign = Campaign(server, "mutants", goods)
            files = list(corpus())
            start = time.monotonic()
            campaign.send((kind, "none", data) for kind, data in [*files, *others])
            table = campaign.send(mutants([*files, *others, ("ct", slices[0])], asked.mutants, asked.seed))
            seconds = time.monotonic() - start
        finally:
            server.stop(drain=0)
    finish(asked.json, machine, {"mutants": asked.mutants, **table.to_json(), "seconds": round(seconds)})
    return 0 if table.is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
