"""A small run of every registered model, at its own size and settings, for benchmarks to open.

What a model computes does not hang on how long it learned, so that training is as short as it can be: some phantoms,
one epoch. Runs are kept and used again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path

from medad_serve.artifact import MANIFEST
from medad_serve.data.phantoms import PHANTOMS
from medad_serve.evaluation import export_run
from medad_serve.export.artifact import ALL, package_versions
from medad_serve.files import write_whole
from medad_serve.models import Family, family
from medad_serve.training.config import known_keys, resolve
from medad_serve.training.fit import fit
from medad_serve.training.run import Run, create_run, same_run

PATIENTS = {2: (60, 20), 3: (20, 6)}
"""Healthy and abnormal ones of each phantom, by the dimensions of an item: a quarter of the healthy for each role."""
SPLIT = ("split.train=0.25", "split.validation=0.25", "split.calibration=0.25")
CALIBRATION = ("calibration.method=held_out", "calibration.policy=specificity=0.8")
"""Five healthy patients carry this policy, the fewest that calibrate."""
MADE = "exported-by.json"
"""In a run: digest of the code and versions of the packages that its artifact was made with."""
ROOMS = ("models", "export", "runtime", "prep")
"""Packages whose code makes an artifact what it is."""
Say = Callable[[str], None]


def small_artifact(name: str, home: Path, say: Say = lambda _: None, *, device: str = "cpu") -> Path:
    """Return the artifact of a small run with every variant that can be made here.

    One that is there is used again, unless other code, packages or another ``device`` made it.
    """
    run, made_by = small_run(name, home, say), json.dumps({**_maker(), "device": device}, indent=1, sort_keys=True)
    note = run.path / MADE
    if not (run.artifact / MANIFEST).is_file() or not note.is_file() or note.read_text() != made_by:
        say(f"{name}: exporting every variant that this machine can make")
        formats = ("onnx", "torchscript", ALL)
        export_run(run, formats, name=name, say=lambda line: say(f"{name}: {line}"), device=device)
        write_whole(note, made_by)
    return run.artifact


def small_run(name: str, home: Path, say: Say = lambda _: None) -> Run:
    """Return a finished run of a model below ``home``, trained now if it is not there."""
    return _finished(name, home, (), say)


def _finished(name: str, home: Path, more: tuple[str, ...], say: Say) -> Run:
    chosen = family(name)
    if chosen.builds_on:
        more = (f"init={_finished(chosen.builds_on, home, (), say).path}", *more)
    overrides = (*CALIBRATION, *_short(name), "train.batch_size=2", "device=cpu", *more)
    overrides = overrides if chosen.builds_on else (*SPLIT, *overrides)
    config = resolve(name, _phantoms(chosen, home), None, overrides)
    run = same_run(config, home) or create_run(config, home)
    say(f"{name}: run {run.path}")
    fit(run, run.prepared())
    return run


def _short(name: str) -> Iterator[str]:
    """Yield settings that let every phase of a training end after one epoch."""
    for key in sorted(known_keys(name)):
        if key.endswith("epochs"):
            yield f"{key}=1"


def _phantoms(chosen: Family, home: Path) -> str:
    """Return ``layout:directory`` of a few phantoms below ``home``, written where they are not there."""
    healthy, abnormal = PATIENTS[len(chosen.prep.size)]
    phantom, data = PHANTOMS[chosen.phantom], home / "data" / f"{chosen.phantom}-{healthy}-{abnormal}"
    if not data.is_dir():
        phantom.write(data, healthy=healthy, abnormal=abnormal, slices=1, seed=0)
    return f"{phantom.layout}:{data}"


def _maker() -> dict[str, str]:
    """Return what decides how an artifact comes out: the code of the rooms that make it, and the packages."""
    digest = hashlib.sha256()
    for room in ROOMS:
        for file in sorted(Path(str(files(f"medad_serve.{room}"))).rglob("*.py")):
            digest.update(file.read_bytes())
    return {"code": digest.hexdigest(), **package_versions()}
