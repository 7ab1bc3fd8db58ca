"""Which variant, batch, threads and session to serve an artifact with: measured here, kept in its manifest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from medad_serve.artifact import load_manifest, write_manifest
from medad_serve.bench.inputs import Inputs, inputs_for
from medad_serve.bench.machine import this_machine
from medad_serve.bench.timing import Turns, in_turns
from medad_serve.errors import MedadError
from medad_serve.evaluation.subject import run_around
from medad_serve.runtime import fitting_batch, lacking, open_runtime
from medad_serve.serving.resources import cores
from medad_serve.spec import Manifest, Session, Tuning, full_name

BATCHES = (1, 4, 8, 16)
WORTH = 1.05
"""Times as fast as what is simpler or answers sooner: below, it is within what the measure itself varies by."""
WORTH_OF_A_WORKER = 1.15
"""The same for another process of half a gigabyte."""
Say = Callable[[str], None]


class Trial(NamedTuple):
    """One way to run an artifact."""

    variant: str
    session: Session = Session()
    workers: int = 1

    @property
    def label(self) -> str:
        """How it is told."""
        changed = self.session.model_dump(exclude_defaults=True)
        said = [f"{name}={value}" for name, value in changed.items()]
        return ", ".join([self.variant, *said, *([f"workers={self.workers}"] if self.workers > 1 else [])])


def tune(artifact: Path, *, variants: Sequence[str] = (), seconds: float = 1.0, say: Say = lambda _: None) -> Tuning:
    """Measure how an artifact answers most items a second, and write it into its manifest.

    ``variants`` restricts the search; without it every one exported that this installation can run takes part.
    ``seconds`` is the time of each trial. Raises MedadError where no variant is left.
    """
    manifest = load_manifest(artifact)
    chosen = tuple(_runnable(manifest, artifact, [full_name(name) for name in variants] or manifest.calibrations))
    run = run_around(artifact)
    search = _Search(artifact, manifest, inputs_for(manifest, run.path if run else None), seconds, say)
    best = search.best_batch(search.best_variant(chosen))
    if best.variant.startswith("onnx/"):
        best = search.best_session(best)
    best = search.best_division(best)
    found = Tuning(
        variant=best.variant,
        session=best.session,
        workers=best.workers,
        machine=this_machine().kind,
        items_per_second=search.rates[best.label],
        trials=search.rates,
    )
    write_manifest(artifact, manifest.model_copy(update={"tuning": found}))
    return found


def _runnable(manifest: Manifest, artifact: Path, variants: Sequence[str] | dict[str, Any]) -> Iterator[str]:
    reasons = []
    for name in variants:
        manifest.calibration_of(name, artifact)
        if reason := lacking(name):
            reasons.append(reason)
        else:
            yield name
    if len(reasons) == len(variants):
        raise MedadError("; ".join(dict.fromkeys(reasons)), "Or export another format")


class _Search:
    """Trials in turn; each step varies one thing of the best so far."""

    def __init__(self, artifact: Path, manifest: Manifest, inputs: Inputs, seconds: float, say: Say) -> None:
        self.artifact, self.inputs, self.seconds, self.say = artifact, inputs, seconds, say
        self.outputs = [output.name for output in manifest.outputs]
        self.names = [name for name in self.outputs if name in ("score", "probability", "severity")]
        self.most = fitting_batch(manifest.input_shape)
        self.rates: dict[str, float] = {}
        """Items a second, by label of the trial."""

    def best_variant(self, variants: Sequence[str]) -> Trial:
        """Return the variant that answers one item soonest."""
        trials = [Trial(name, Session(batch=1)) for name in variants]
        return self._fastest(trials, worth=1.0)

    def best_batch(self, usual: Trial) -> Trial:
        """Return it with the smallest batch that is as good as any."""
        sizes = sorted({min(size, self.most) for size in BATCHES})
        return self._fastest([usual._replace(session=Session(batch=size)) for size in sizes])

    def best_session(self, usual: Trial) -> Trial:
        """Return it with what else onnxruntime may do."""
        changes: list[dict[str, Any]] = [{}, {"optimization": "extended"}, {"arena": False}, {"spinning": True}]
        return self._fastest([usual._replace(session=usual.session.model_copy(update=c)) for c in changes])

    def best_division(self, usual: Trial) -> Trial:
        """Return it with the cores divided among threads and workers."""
        # torch has one number of threads for the whole process: of TorchScript none of this can be tried in it
        if cores() == 1 or usual.variant.startswith("torchscript"):
            return usual
        single = usual._replace(session=usual.session.model_copy(update={"threads": 1}))
        best = self._fastest([usual, single])
        each_own = best._replace(workers=cores())
        return self._fastest([best, each_own], worth=WORTH_OF_A_WORKER)

    def _fastest(self, trials: Sequence[Trial], worth: float = WORTH) -> Trial:
        """Measure trials in turn; return the fastest, or the one before it that it is not worth giving up for."""
        calls = {}
        for trial in trials:
            try:
                calls[trial.label] = self._call(trial)
            except MedadError as error:  # a processor that lacks what a precision needs
                self.say(f"without {trial.label}: {error.message}")
        if not calls:
            raise MedadError("no variant of the artifact can run on this machine", "Export another format")
        turns = in_turns(calls, self.seconds)
        tried = [trial for trial in trials if trial.label in calls]
        self.rates |= {trial.label: self._rate(trial, turns[trial.label]) for trial in tried}
        for trial in tried:
            self.say(f"{trial.label}: {self.rates[trial.label]:.1f} items a second")
        best = tried[0]
        for trial in tried[1:]:
            per_item = trial.workers * (trial.session.batch or 1), best.workers * (best.session.batch or 1)
            speed_up = turns[best.label].ratio(turns[trial.label]) * per_item[0] / per_item[1]
            best = trial if speed_up > worth else best
        return best

    def _rate(self, trial: Trial, turns: Turns) -> float:
        return trial.workers * (trial.session.batch or 1) * turns.calls_per_second()

    def _call(self, trial: Trial) -> Callable[[], object]:
        threads = trial.session.threads or max(1, cores() // trial.workers)
        runtimes = [
            open_runtime(self.artifact, trial.variant, self.outputs, threads=threads, session=trial.session)
            for _ in range(trial.workers)
        ]
        batch = self.inputs.batch(trial.session.batch or 1)
        calls = [partial(runtime.run, batch, self.names) for runtime in runtimes]
        return calls[0] if len(calls) == 1 else partial(_together, ThreadPoolExecutor(len(calls)), calls)


def _together(pool: ThreadPoolExecutor, calls: Sequence[Callable[[], object]]) -> None:
    for each in [pool.submit(call) for call in calls]:
        each.result()
