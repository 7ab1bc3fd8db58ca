"""Runs of every registered model for benchmarks to open, on phantoms; they are kept and used again.

A small one is at the model's own size and settings: how long a model computes does not hang on how long it learned, so
that training is as short as it can be. What a precision does to an AUROC does hang on it: for that there is one that
learned, at the size and by the settings of ``medad-serve quickstart``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from medad_serve.artifact import MANIFEST
from medad_serve.data.phantoms import PHANTOMS
from medad_serve.evaluation import export_run
from medad_serve.export.artifact import ALL, package_versions
from medad_serve.files import write_whole
from medad_serve.models import Family, family
from medad_serve.spec import SCHEMA_VERSION
from medad_serve.training.config import known_keys, resolve
from medad_serve.training.fit import fit
from medad_serve.training.run import Run, create_run, same_run

PATIENTS = {2: (60, 20), 3: (20, 6)}
"""Healthy and abnormal ones of each phantom, by the dimensions of an item: a quarter of the healthy for each role."""
SPLIT = ("split.train=0.25", "split.validation=0.25", "split.calibration=0.25")
CALIBRATION = ("calibration.method=held_out", "calibration.policy=specificity=0.8")
"""Five healthy patients carry this policy, the fewest that calibrate."""
MADE = "exported-by.json"
"""In a run: digest of the code, and versions of the packages that its artifact was made with."""
ROOMS = ("models", "export", "runtime", "prep")
"""Packages whose code makes an artifact what it is."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Recipe:
    """What a run is trained on, and how."""

    folder: str
    """Below which runs and data lie, beside those of other recipes."""
    patients: Callable[[Family], tuple[int, int, int]]
    """Healthy and abnormal ones, and slices of each."""
    settings: Callable[[Family], Iterator[str]]
    gated: bool = True
    """Whether a reduced precision that tells less apart is left out."""


def _small(chosen: Family) -> Iterator[str]:
    """Yield settings that let every phase of a training end after one epoch."""
    yield from CALIBRATION
    yield "train.batch_size=2"
    if not chosen.builds_on:
        yield from SPLIT
    for key in sorted(known_keys(chosen.name)):
        if key.endswith("epochs"):
            yield f"{key}=1"


def _phantoms_of(chosen: Family) -> tuple[int, int, int]:
    phantom = PHANTOMS[chosen.phantom]
    return phantom.healthy, phantom.abnormal, phantom.slices


SMALL = Recipe("", lambda chosen: (*PATIENTS[len(chosen.prep.size)], 1), _small, gated=False)
LEARNT = Recipe("learnt", _phantoms_of, lambda chosen: iter(chosen.quick))


def artifact_of(
    name: str, home: Path, say: Say = lambda _: None, *, recipe: Recipe = SMALL, device: str = "cpu"
) -> Path:
    """Return the artifact of a model's run with every variant that can be made here.

    One that is there is used again, unless other code, packages or another ``device`` made it.
    """
    run, made_by = run_of(name, home, say, recipe), {**_maker(), "device": device}
    note = run.path / MADE
    kept = json.loads(note.read_bytes()) if note.is_file() else None
    if not (run.artifact / MANIFEST).is_file() or kept != made_by:
        say(f"{name}: exporting every variant that this machine can make")
        formats = ("onnx", "torchscript", ALL)
        export_run(run, formats, name=name, say=lambda line: say(f"{name}: {line}"), device=device, gated=recipe.gated)
        write_whole(note, json.dumps(made_by, indent=1, sort_keys=True))
    return run.artifact


def run_of(name: str, home: Path, say: Say = lambda _: None, recipe: Recipe = SMALL) -> Run:
    """Return a finished run of a model below ``home``, trained now if it is not there."""
    chosen, folder = family(name), home / recipe.folder
    settings = ["device=cpu", *recipe.settings(chosen)]
    if chosen.builds_on:
        settings.append(f"init={run_of(chosen.builds_on, home, say, recipe).path}")
    config = resolve(name, _phantoms(chosen, recipe, folder), None, settings)
    run = same_run(config, folder) or create_run(config, folder)
    say(f"{name}: run {run.path}")
    fit(run, run.prepared())
    return run


def _phantoms(chosen: Family, recipe: Recipe, folder: Path) -> str:
    """Return ``layout:directory`` of phantoms below a folder, written where they are not there."""
    healthy, abnormal, slices = recipe.patients(chosen)
    phantom, data = PHANTOMS[chosen.phantom], folder / "data" / f"{chosen.phantom}-{healthy}-{abnormal}"
    if not data.is_dir():
        phantom.write(data, healthy=healthy, abnormal=abnormal, slices=slices, seed=0)
    return f"{phantom.layout}:{data}"


def _maker() -> dict[str, str]:
    """Return what decides how an artifact comes out: the code of the rooms that make it, and the packages."""
    digest = hashlib.sha256()
    for room in ROOMS:
        for file in sorted(Path(str(files(f"medad_serve.{room}"))).rglob("*.py")):
            digest.update(file.read_bytes())
    return {"code": digest.hexdigest(), "schema": str(SCHEMA_VERSION), **package_versions()}
