"""Train and measure every variant of an ablation; called again, it goes on where it was stopped or killed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from medad_serve.ablation.plan import Plan, Variant
from medad_serve.data.cache import Progress
from medad_serve.errors import MedadError
from medad_serve.evaluation import evaluate_all, open_subject, score
from medad_serve.evaluation.synthetic import make_faults, synthetic_section
from medad_serve.files import write_whole
from medad_serve.models import count_parameters
from medad_serve.report import plot_history
from medad_serve.training.config import RunConfig
from medad_serve.training.fit import fit
from medad_serve.training.run import DONE, METRICS, Run, create_run, same_run

try:
    import fcntl
except ImportError:  # Windows: two ablations of one folder are then on their own
    fcntl = None  # type: ignore[assignment]

Say = Callable[[str], None]
RECORD = "ablation.json"
"""In a run: how long it trained, where its figures lie by data set, and those on faults of the base."""
COMMON = "common"
"""Figures on synthetic faults that are the same for every variant: those that the base makes."""


@dataclass(frozen=True)
class Row:
    """One line of the table: a variant on a data set, or a variant that failed."""

    variant: Variant
    reported_on: str
    metrics: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    """Time in training, all attempts together."""
    epochs: int | None = None
    parameters: int | None = None
    run: Path | None = None
    error: str = ""


class Clock(Callback):
    """Adds up the time in training over stops and kills, and remembers who ended it."""

    def __init__(self, path: Path) -> None:
        self.path, self.before, self.started = path, _record(path).get("seconds", 0.0), 0.0
        self.stopped = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start."""
        self.started = time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the time so far."""
        seconds = self.before + time.monotonic() - self.started
        write_whole(self.path, json.dumps({**_record(self.path), "seconds": seconds}))

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Remember that the user, or the machine, stopped the training."""
        self.stopped = isinstance(exception, KeyboardInterrupt | SystemExit)


def _record(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


class Ablation:
    """An ablation on disk: ``folder`` holds the runs, the table, its plots and the report."""

    def __init__(self, plan: Plan, runs: Path, name: str | None = None) -> None:
        name = name or f"{plan.base.experiment}-ablation"
        if name != Path(name).name or name.startswith("."):
            raise MedadError(f"{name!r} is no name for an ablation", "Give a plain folder name")
        self.plan, self.folder = plan, runs / name
        self.folder.mkdir(parents=True, exist_ok=True)

    def run(
        self,
        say: Say = lambda _: None,
        progress: Progress | None = None,
        after: Callable[[list[Row]], None] | None = None,
    ) -> list[Row]:
        """Train and measure what is not yet; ``after`` is given the rows so far after each variant.

        A variant that fails has its reason in its row. Raises MedadError where the user stops, or where another
        process works in the folder.
        """
        rows: list[Row] = []
        with self._alone():
            for number, variant in enumerate(self.plan.variants, 1):
                say(f"{number} of {len(self.plan.variants)}, {variant}")
                found = self._rows(variant, lambda text: say(f"  {text}"), progress)
                rows += found
                for row in found:
                    if row.error:
                        say(f"  failed: {row.error}")
                if after:
                    after(rows)
        return rows

    def _rows(self, variant: Variant, say: Say, progress: Progress | None) -> list[Row]:
        if variant.config is None:
            return [Row(variant, variant.data, error=variant.error)]
        clock: list[Clock] = []
        try:
            run = self._trained(variant.config, clock, say, progress)
            measured = self._measured(run, variant, progress)
        except (MedadError, torch.OutOfMemoryError, RuntimeError, ValueError) as error:
            if any(c.stopped for c in clock):
                raise MedadError("the ablation was stopped", "Call it again to go on") from None
            return [Row(variant, variant.data, error=_reason(error))]
        record = _record(run.path / RECORD)
        return [
            Row(
                variant,
                source,
                metrics,
                seconds=record.get("seconds"),
                epochs=_epochs(run),
                parameters=count_parameters(run.build()),
                run=run.path,
            )
            for source, metrics in measured.items()
        ]

    def _trained(self, config: RunConfig, clock: list[Clock], say: Say, progress: Progress | None) -> Run:
        """Return the run of a configuration, trained to its end: variants that are alike share one."""
        run = same_run(config, self.folder) or create_run(config, self.folder)
        if (run.path / DONE).is_file():
            say(f"run {run.path} is there")
            return run
        say(f"run {run.path}")
        data = run.prepared(progress)
        if data.faults:
            say(f"{len(data.faults)} files left out, e.g. {data.faults[0]}")
        clock.append(Clock(run.path / RECORD))
        fit(run, data, say, callbacks=clock)
        plot_history(run.path / METRICS, run.path / "history.png")
        return run

    def _measured(self, run: Run, variant: Variant, progress: Progress | None) -> dict[str, dict[str, Any]]:
        """Return the metrics of every data set, from the files of an earlier call where there are such."""
        record = _record(run.path / RECORD)
        files: dict[str, str] = record.get("figures", {})
        wanted = [s for s in variant.report_on if not (s in files and (run.path / files[s]).is_file())]
        if wanted:
            outcomes = evaluate_all(run.path, wanted, progress=progress)
            files |= {outcome.data: outcome.file.name for outcome in outcomes}
            write_whole(run.path / RECORD, json.dumps({**record, "figures": files}))
        found = {s: json.loads((run.path / files[s]).read_bytes()) for s in variant.report_on}
        for source, metrics in found.items():
            metrics |= self._common(run, source, metrics, progress)
        return found

    def _common(self, run: Run, source: str, metrics: dict[str, Any], progress: Progress | None) -> dict[str, Any]:
        """Return the figures on faults of the base: each variant's own faults would measure another thing."""
        base = self.plan.base
        if "synthetic" not in metrics:
            return {}
        own, same = (c.model_dump(mode="json", include={"settings", "prep"}) for c in (run.config, base))
        if own == same:
            return {COMMON: metrics["synthetic"]}
        record = _record(run.path / RECORD)
        known = record.setdefault(COMMON, {})
        if source not in known:
            subject, _ = open_subject(run.path, data=source, progress=progress)
            scored = score(subject)
            made = make_faults(subject, scored, run.family.build(run.config.prep, base.settings))
            known[source] = synthetic_section(scored, made) if made else None
            write_whole(run.path / RECORD, json.dumps(record))
        return {COMMON: known[source]}

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold a lock that ends with the process."""
        with (self.folder / ".lock").open("w") as lock:
            if fcntl is not None:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    raise MedadError(
                        f"an ablation is running in {self.folder}", "Wait for it, or name another with --name"
                    ) from None
            yield


def _epochs(run: Run) -> int | None:
    """Return how long a run was trained, as its last line says."""
    try:
        return int((run.path / DONE).read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None


def _reason(error: Exception) -> str:
    if isinstance(error, MedadError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return "the device ran out of memory"
    return f"internal fault ({type(error).__name__})"
