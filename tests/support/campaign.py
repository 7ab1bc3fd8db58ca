"""What the campaigns share: a small artifact of their own, and the record that each leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from medad_serve.bench.machine import this_machine
from medad_serve.files import write_whole


def make_artifact(root: Path) -> tuple[Path, list[bytes]]:
    """Train a small model that accepts any modality on synthetic head CT; return it and slices of a head."""
    from medad_serve.data.phantoms import PHANTOMS
    from medad_serve.evaluation import export_run
    from medad_serve.models import family
    from medad_serve.training.config import resolve
    from medad_serve.training.fit import fit
    from medad_serve.training.run import create_run

    phantom = PHANTOMS[family("ae").phantom]
    phantom.write(root / "data", healthy=40, abnormal=8, slices=2, seed=0)
    settings = [
        "train.max_epochs=2",
        "input.modalities=[]",
        "input.body_parts=[]",
        "input.min_size=1",
        "input.bits=null",
        "input.spacing_mm=null",
        "calibration.method=held_out",
        "calibration.policy=specificity=0.8",
    ]
    run = create_run(resolve("ae", f"{phantom.layout}:{root / 'data'}", None, settings), root / "runs")
    fit(run, run.prepared())
    slices = sorted((path for path in (root / "data").rglob("*.dcm")), key=str)[:4]
    return export_run(run, ["onnx"], name="mutants"), [path.read_bytes() for path in slices]


def on_machine() -> dict[str, Any]:
    """Return the facts of this machine; before a campaign begins, its load is what others put on it."""
    return this_machine().model_dump(mode="json", include={"cpu", "cores", "memory_gib", "load", "versions"})


def finish(path: Path, machine: dict[str, Any], found: dict[str, Any]) -> None:
    """Print what was found, and write it with what it was found on."""
    text = json.dumps({"machine": machine, **found}, indent=1)
    write_whole(path, text + "\n")
    print(text)
