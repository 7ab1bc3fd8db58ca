"""Artifacts of models that nobody trained: how an answer is computed does not hang on what was learned."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from medad_serve.artifact import write_manifest
from medad_serve.export.graphs import Graphs
from medad_serve.models import Family, count_parameters
from medad_serve.spec import Calibration, Cutoff, InputSpec, LevelCalibration, Manifest, OutputSpec, full_name

POLICY = "specificity=0.95"


def export_untrained(chosen: Family, directory: Path, runtimes: Iterable[str] = ("onnx", "torchscript")) -> None:
    """Export a model with random weights, for files of any modality, its cutoffs made up."""
    torch.manual_seed(0)
    model, shape = chosen.build().eval(), chosen.shape(chosen.prep)
    with torch.no_grad():
        outputs = model(torch.rand(2, *shape))
    level = LevelCalibration(
        normal_scores=tuple(np.linspace(0.1, 1, 39).tolist()),
        n=39,
        patients=39,
        cutoffs=(Cutoff(policy=POLICY, value=0.5, n=39),),
    )
    calibration = Calibration(
        method="held_out",
        items_per_patient=(1, 9),
        data_fingerprint="none",
        heatmap_scale=1.0,
        item=level,
        patient=level,
    )
    with TemporaryDirectory() as scratch:
        graphs = Graphs(model, shape, torch.rand(2, *shape).numpy(), Path(scratch))
        for kind in runtimes:
            shutil.copy(graphs.file(kind), directory)
    manifest = Manifest(
        name=chosen.name,
        model=chosen.name,
        parameters=count_parameters(model),
        input=InputSpec(),
        prep=chosen.prep,
        input_shape=shape,
        outputs=tuple(
            OutputSpec(name=n, shape=tuple(outputs[n].shape[1:]), deviations=n in model.deviations)
            for n in model.outputs
        ),
        default_policy=POLICY,
        calibrations={full_name(kind): calibration for kind in runtimes},
        parity=(),
        packages={},
        files={},
    )
    write_manifest(directory, manifest)
