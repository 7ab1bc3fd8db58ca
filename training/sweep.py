"""A search for settings: an Optuna study whose trials are runs, resumable after a stop or a kill."""

from __future__ import annotations

import csv
import math
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning as L
import optuna
import torch
from lightning.pytorch.callbacks import Callback
from optuna.trial import FrozenTrial, TrialState

from medad_serve.data import Prepared
from medad_serve.data.cache import Progress
from medad_serve.errors import MedadError
from medad_serve.training.config import RunConfig
from medad_serve.training.fit import Say, fit
from medad_serve.training.run import METRICS, Run, create_run, is_run, open_run
from medad_serve.training.sweep_plan import Plan
from medad_serve.training.sweep_report import write_sweep
from medad_serve.training.task import direction, logged

KILLS = 3
"""A trial that was killed as often is counted as failed: it may need more memory than there is."""
FAILURES = 3
"""Failed trials, none having succeeded, after which a sweep gives up."""
RUN, ERROR, RETRY_OF, KILLED, PRUNED = "run", "error", "retry_of", "killed", "pruned"


class _FailedTrial(Exception):
    """Ends a trial, not the sweep."""


class _UnusableData(MedadError):
    """Ends the sweep: no trial can read this data. The trial is taken up once it is mended."""


class Watch(Callback):
    """Reports the metric of every epoch to the study and ends a trial that promises nothing."""

    def __init__(self, trial: optuna.Trial, metric: str) -> None:
        self.trial, self.metric = trial, metric
        self.known = set(trial.study.trials[trial.number].intermediate_values)
        self.stopped = False

    def _report(self, epoch: int, value: float) -> None:
        """Report an epoch, unless the trial that was taken up has told it."""
        if epoch not in self.known:
            self.trial.report(value, epoch)
            self.known.add(epoch)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report what was logged, and not yet told, when the trial that is taken up was killed."""
        for row in _rows(Path(trainer.default_root_dir) / METRICS):
            self._report(int(row["epoch"]), row[self.metric])

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report the epoch."""
        values = logged(trainer)
        if self.metric not in values:
            raise MedadError(f"training logs no {self.metric}", f"It logs: {', '.join(values)}")
        epoch = trainer.current_epoch
        self._report(epoch, values[self.metric])
        if self.trial.should_prune():
            self.trial.set_user_attr(PRUNED, epoch)
            trainer.should_stop = True

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Remember that the user, or the machine, stopped the training."""
        self.stopped = isinstance(exception, KeyboardInterrupt | SystemExit)


def _rows(metrics: Path) -> list[dict[str, float]]:
    """Read what a run has logged so far."""
    with metrics.open(newline="") as file:
        return [{name: float(text) for name, text in row.items()} for row in csv.DictReader(file)]


def objective_value(run: Run, metric: str) -> float:
    """Return a run's metric at the epoch of its best checkpoint; raises MedadError where it is not finite."""
    rows = _rows(run.path / METRICS)
    monitor = run.config.train.monitor
    sign = 1 if direction(monitor) == "min" else -1
    finite = [row for row in rows if math.isfinite(row[monitor])]
    if not finite:
        raise MedadError(f"{monitor} was never finite", "Lower the learning rate")
    value = min(finite, key=lambda row: sign * row[monitor])[metric]
    if not math.isfinite(value):
        raise MedadError(f"{metric} is not finite at the best epoch", "Lower the learning rate")
    return value


class Sweep:
    """A study on disk: ``folder`` holds ``study.db``, the runs of its trials, their table and plots.

    Use it as a context manager: while it is open, no other process can go on with the same study.
    """

    def __init__(self, plan: Plan, runs: Path, name: str | None = None) -> None:
        self.plan = plan
        name = name or f"{plan.base.experiment}-sweep"
        if name != Path(name).name or name.startswith("."):
            raise MedadError(f"{name!r} is no name for a study", "Give a plain folder name")
        self.folder = runs / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.name = name

    @contextmanager
    def opened(self) -> Iterator[optuna.Study]:
        """Yield the study, begun or gone on with; raises MedadError where it is another one, or in use."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)  # what a trial came to is told by us
        with _alone(self.folder):
            storage = optuna.storages.RDBStorage(f"sqlite:///{self.folder / 'study.db'}")
            try:
                study = optuna.create_study(
                    storage=storage,
                    study_name=self.name,
                    direction="minimize" if self.plan.mode == "min" else "maximize",
                    pruner=self.plan.pruner(),
                    load_if_exists=True,
                )
                self._same_as_before(study)
                yield study
            finally:
                storage.engine.dispose()

    def _same_as_before(self, study: optuna.Study) -> None:
        now = self.plan.identity()
        before = study.user_attrs.get("plan", now)
        changed = sorted(k for k in {*now, *before} if now.get(k) != before.get(k))
        if changed:
            raise MedadError(
                f"study {self.folder} was begun with another {', '.join(changed)}",
                "Repeat its settings, or name a new study with --study",
            )
        study.set_user_attr("plan", now)

    def run(self, study: optuna.Study, say: Say = lambda _: None, progress: Progress | None = None) -> None:
        """Train trials until the study has as many as were asked for, or its grid is done."""
        _take_up(study, say)
        try:
            while (number := self._next(study)) is not None:
                study.sampler = self.plan.sampler(number)
                study.optimize(lambda trial: self._trial(trial, say, progress), n_trials=1, catch=(_FailedTrial,))
                _give_up(study)
        finally:
            write_sweep(study, self.folder, self.plan.metric)

    def _next(self, study: optuna.Study) -> int | None:
        """Return the number of the next trial, None at the end."""
        trials = study.get_trials(deepcopy=False)
        if any(t.state == TrialState.WAITING for t in trials):
            return len(trials)
        if sum(map(is_counted, trials)) >= self.plan.trials:
            return None
        sampler = self.plan.sampler(len(trials))
        done = isinstance(sampler, optuna.samplers.GridSampler) and sampler.is_exhausted(study)
        return None if done else len(trials)

    def _trial(self, trial: optuna.Trial, say: Say, progress: Progress | None) -> float:
        values = {d.key: d.suggest(trial) for d in self.plan.space.dimensions}
        say(f"trial {trial.number}: {', '.join(f'{k}={v}' for k, v in values.items())}")
        watch = Watch(trial, self.plan.metric)
        try:
            config = self.plan.config(values)
            run, data = self._begin(trial, config, progress)
            if data.faults:
                say(f"  {len(data.faults)} files left out, e.g. {data.faults[0]}")
            fit(run, data, lambda text: say(f"  {text}"), callbacks=[watch], folds=False)
            value = objective_value(run, self.plan.metric)
        except _UnusableData:
            raise
        except (MedadError, torch.OutOfMemoryError) as error:
            if watch.stopped:
                raise MedadError("the sweep was stopped", "Call it again to go on") from None
            reason = str(error) if isinstance(error, MedadError) else "the device ran out of memory"
            trial.set_user_attr(ERROR, reason)
            say(f"  failed: {reason}")
            raise _FailedTrial from None
        pruned = trial.user_attrs.get(PRUNED)
        say(f"  {self.plan.metric} {value:.6g}" + ("" if pruned is None else f", ended after epoch {pruned + 1}"))
        if pruned is not None:
            raise optuna.TrialPruned
        return value

    def _begin(self, trial: optuna.Trial, config: RunConfig, progress: Progress | None) -> tuple[Run, Prepared]:
        """Return the run of a trial, a new one or that of the killed trial that it takes up, and its data."""
        begun = trial.user_attrs.get(RUN)
        try:
            if begun and is_run(self.folder / begun):
                run = open_run(self.folder / begun)
            else:
                run = create_run(config, self.folder)
                trial.set_user_attr(RUN, run.path.relative_to(self.folder).as_posix())
            return run, run.prepared(progress)
        except MedadError as error:
            if any(d.key.startswith("prep.") for d in self.plan.space.dimensions):
                raise  # another preparation may do
            raise _UnusableData(error.message, error.hint) from None


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a lock that ends with the process, however that ends: an open transaction on a file of its own."""
    lock = sqlite3.connect(folder / "lock.db", timeout=0, isolation_level=None)
    try:
        try:
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:
            raise MedadError(f"a sweep is running in {folder}", "Wait for it, or name another with --study") from None
        yield
    finally:
        lock.close()


def is_counted(trial: FrozenTrial) -> bool:
    """Whether a trial came to an end of its own: with a value, pruned, or failed by its settings."""
    if trial.state == TrialState.FAIL:
        return ERROR in trial.user_attrs
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED)


def _take_up(study: optuna.Study, say: Say) -> None:
    """Queue the trials that a stop or a kill ended: nobody else runs this study, so none is alive."""
    for old in study.get_trials(states=(TrialState.RUNNING,)):
        kills = old.user_attrs.get(KILLED, 0) + 1
        open_trial = optuna.Trial(study, old._trial_id)
        open_trial.set_user_attr(KILLED, kills)
        if kills >= KILLS:
            open_trial.set_user_attr(ERROR, f"the process was killed {kills} times in this trial")
        study.tell(old.number, state=TrialState.FAIL)
    trials = study.get_trials()
    taken = {t.user_attrs.get(RETRY_OF) for t in trials}
    for old in trials:
        if old.state != TrialState.FAIL or ERROR in old.user_attrs or old.number in taken:
            continue
        say(f"trial {old.number} was stopped: taken up as trial {len(study.trials)}")
        study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.WAITING,
                params=old.params,
                distributions=old.distributions,
                user_attrs={**old.user_attrs, RETRY_OF: old.number},
                system_attrs=old.system_attrs,
                intermediate_values=old.intermediate_values,
            )
        )


def _give_up(study: optuna.Study) -> None:
    """Raise what failed where every trial does."""
    counted = [t for t in study.get_trials(deepcopy=False) if is_counted(t)]
    if len(counted) >= FAILURES and all(t.state == TrialState.FAIL for t in counted):
        raise MedadError(f"{len(counted)} trials failed and none succeeded: {counted[-1].user_attrs[ERROR]}")
