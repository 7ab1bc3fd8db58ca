"""What real data and the trainer add to a training step: plain loops and the trainer, in turn."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from importlib.resources import files
from itertools import repeat
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch

from medad_serve.bench.tables import Cell, Table
from medad_serve.bench.timing import LEAST_TURNS, Turns
from medad_serve.models import AnomalyModel, Batch, Family
from medad_serve.models.base import device_for
from medad_serve.spec import read_yaml
from medad_serve.training.augment import Augment, AugmentSettings
from medad_serve.training.batches import Batches, loader
from medad_serve.training.config import TrainSettings
from medad_serve.training.fit import quiet, trainer_for
from medad_serve.training.task import DetectorTask

RESIDENT, CACHE, TRAINER, BF16 = "resident", "cache", "trainer", "bf16"
CONTIGUOUS, CHANNELS_LAST = "contiguous", "channels last"
COLUMNS = (
    *("model", "size", "batch", "augmented", "step on a resident batch, ms", "cache / resident", "trainer / cache"),
    *("items/s, plain loop", "items/s, trainer", "bf16, x faster", "channels last, x faster"),
)
MOST_VALUES = 2**18
"""Of a batch: it is cut to that, but for two items. A smaller batch shows what data and trainer cost the more."""
VOLUME = (64, 64, 64)
"""Of volumes, an eighth of their own: the network and its settings are those of 128x128x128."""
BATCHES = 4
"""In the cache that is trained on."""
STEPS = 2
"""Of a turn."""


def bench_training(
    chosen: Sequence[Family], *, seconds: float = 10.0, device: str = "cpu", volume: tuple[int, ...] = VOLUME
) -> Table:
    """Time a step on one batch in memory, and what the cache, augmentation and trainer make of it, for each model.

    Volumes have the size ``volume``. Augmentation is that of the recipe. On a CPU it is the processor time of one
    core, which other work on the machine leaves nearly as it is; on a GPU the time on the clock.
    """
    quiet()
    on_cpu, threads = device_for(device).type == "cpu", torch.get_num_threads()
    if on_cpu:
        torch.set_num_threads(1)
    try:
        rows = tuple(_row(_sized(each, volume), seconds, device) for each in chosen)
    finally:
        torch.set_num_threads(threads)
    of = "processor time of one core" if on_cpu else "GPU"
    title = f"Training steps, ratios of medians in turn; {of}; batches of at most {MOST_VALUES:,} values"
    return Table("training", title, COLUMNS, rows)


def _sized(chosen: Family, volume: tuple[int, ...]) -> Family:
    """Return the model at a size whose steps end within seconds: its settings stay its own."""
    size = volume if chosen.prep.is_volume else chosen.prep.size
    return replace(chosen, prep=chosen.prep.model_copy(update={"size": size}))


def _row(chosen: Family, seconds: float, device: str) -> tuple[Cell, ...]:
    settings = _settings(chosen)
    with tempfile.TemporaryDirectory() as folder:
        timed = _timed(Bench(chosen, settings, Path(folder), device_for(device)), seconds)
    cache, resident = timed[CACHE], timed[RESIDENT]
    ratios = cache.ratio(resident), timed[TRAINER].ratio(cache)
    rates = (settings.batch_size * each.calls_per_second() for each in (cache, timed[TRAINER]))
    gains = resident.ratio(timed[BF16]), timed[CONTIGUOUS].ratio(timed[CHANNELS_LAST]) if CONTIGUOUS in timed else None
    size = "x".join(map(str, chosen.prep.size))
    augmented = settings.augment != AugmentSettings()
    return chosen.name, size, settings.batch_size, augmented, resident.median, *ratios, *rates, *gains


def _settings(chosen: Family) -> TrainSettings:
    """Return the model's own training settings, with the augmentation of its recipe and a batch that is cut."""
    settings = TrainSettings(**{"augment": _recipe_augment(chosen.name), **chosen.train})
    most = max(2, MOST_VALUES // math.prod(chosen.shape(chosen.prep)))
    # a plateau watches figures of a validation, which there is none of
    return settings.model_copy(update={"batch_size": min(settings.batch_size, most), "scheduler": "constant"})


def _recipe_augment(name: str) -> Mapping[str, Any]:
    """Return the augmentation of the first recipe of a model that has one."""
    recipes = Path(str(files("medad_serve.training"))) / "recipes"
    for path in sorted(recipes.glob(f"*_{name}*.yaml")):
        found = read_yaml(path)
        if found.get("model") == name and (augment := found.get("train", {}).get("augment")):
            return dict(augment)
    return {}


class Bench:
    """One model with a cache of random items on disk, and the steps that are compared."""

    def __init__(self, chosen: Family, settings: TrainSettings, folder: Path, device: torch.device) -> None:
        torch.manual_seed(0)
        self.chosen, self.settings, self.folder, self.device = chosen, settings, folder, device
        shape = chosen.shape(chosen.prep)
        count = BATCHES * settings.batch_size
        np.save(folder / "tensor.npy", np.random.default_rng(0).random((count, *shape), np.float32))
        self.tensor = np.load(folder / "tensor.npy", mmap_mode="r")
        model = chosen.build()
        self.labels = np.arange(count) % 2 if model.supervised else np.zeros(count, np.int64)
        self.task = DetectorTask(model, settings, ("bench",) * count, "max", 10**6, self.augment())

    def augment(self) -> Augment | None:
        """Return what varies the items, if anything does."""
        asked = self.settings.augment
        return None if asked == AugmentSettings() else Augment(asked, 0, self.chosen.prep.values)

    def data(self) -> Batches:
        """Return the batches of the trainer over the cache."""
        rows, pinned = np.arange(len(self.labels)), self.device.type == "cuda"
        return loader(self.tensor, self.labels, rows, self.settings.batch_size, shuffle=True, pinned=pinned)

    def resident(self) -> Batch:
        """Return one batch that lies on the device."""
        return Batch(*(part.to(self.device) for part in next(iter(self.data()))))

    def cached(self) -> Iterator[Batch]:
        """Yield batches of the cache as the trainer sees them, epoch after epoch."""
        augment = self.augment()
        while True:
            for batch in self.data():
                there = Batch(*(part.to(self.device) for part in batch))
                yield augment(there) if augment else there

    def loop(self, **how: Any) -> PlainLoop:
        """Return a loop with a model of its own."""
        return PlainLoop(self.chosen.build().to(self.device), self.settings, self.device, **how)


def _now(device: torch.device) -> float:
    """Return seconds: of processor time, or on the clock once a GPU has done what it was given."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


class PlainLoop:
    """Takes optimizer steps as a plain PyTorch script does; a model keeps the layout it is built in, unless told."""

    def __init__(
        self,
        model: AnomalyModel,
        settings: TrainSettings,
        device: torch.device,
        *,
        bf16: bool = False,
        memory_format: torch.memory_format | None = None,
    ) -> None:
        self.model = model.train()
        if memory_format is not None:
            self.model = self.model.to(memory_format=memory_format)
        self.device, self.bf16, self.clip = device, bf16, settings.gradient_clip
        kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = kind(self.parameters, settings.learning_rate, fused=True)

    def turn(self, batches: Iterable[Batch]) -> tuple[float, ...]:
        """Take some steps and return the milliseconds of each but the first."""
        taken = []
        waiting = iter(batches)
        for _ in range(STEPS + 1):
            start = _now(self.device)
            self._step(next(waiting))
            taken.append((_now(self.device) - start) * 1e3)
        return tuple(taken[1:])

    def _step(self, batch: Batch) -> None:
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext():
            loss = self.model.loss(batch)["loss"]
        torch.autograd.backward(loss)
        if self.clip:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()


class StepClock(L.Callback):
    """Notes when each step of the trainer begins."""

    def __init__(self) -> None:
        self.started: list[float] = []

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Note the time, once the device has done what came before."""
        self.started.append(_now(trainer.strategy.root_device))


def _trainer_turn(bench: Bench) -> tuple[float, ...]:
    """Take some steps by the trainer and return the milliseconds of each but the first."""
    clock = StepClock()
    trainer = trainer_for(bench.settings, bench.device, bench.folder, [clock], steps=STEPS + 2)
    trainer.fit(bench.task, bench.data())
    gaps = np.diff(clock.started) * 1e3
    return tuple(float(gap) for gap in gaps[1:])


def _timed(bench: Bench, seconds: float) -> dict[str, Turns]:
    fixed, cached = bench.resident(), bench.cached()
    plain, half = bench.loop(), bench.loop(bf16=True)
    tasks: dict[str, Callable[[], tuple[float, ...]]] = {
        RESIDENT: lambda: plain.turn(repeat(fixed)),
        CACHE: lambda: plain.turn(cached),
        TRAINER: lambda: _trainer_turn(bench),
        BF16: lambda: half.turn(repeat(fixed)),
    }
    if not bench.chosen.prep.is_volume:
        first, last = (bench.loop(memory_format=each) for each in (torch.contiguous_format, torch.channels_last))
        turned = fixed._replace(x=fixed.x.to(memory_format=torch.channels_last))
        tasks[CONTIGUOUS] = lambda: first.turn(repeat(fixed))
        tasks[CHANNELS_LAST] = lambda: last.turn(repeat(turned))
    turns: dict[str, list[tuple[float, ...]]] = {name: [] for name in tasks}
    until = time.perf_counter() + seconds * len(tasks)
    while time.perf_counter() < until or any(len(made) < LEAST_TURNS for made in turns.values()):
        for name, task in tasks.items():
            turns[name].append(task())
    return {name: Turns(tuple(made)) for name, made in turns.items()}
