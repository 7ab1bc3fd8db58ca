"""Trained model to artifact: graphs, calibration over the exported files, parity, manifest; whole or not at all."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medad_serve.artifact import GRAPHS, write_manifest
from medad_serve.calibration import HeldOut, calibrate
from medad_serve.errors import MedadError
from medad_serve.export.graph import EagerRuntime
from medad_serve.export.onnx import export_onnx
from medad_serve.export.parity import check_parity
from medad_serve.export.torchscript import export_torchscript
from medad_serve.files import whole_directory
from medad_serve.models import AnomalyModel, count_parameters
from medad_serve.models.base import Shape
from medad_serve.prep import Statistics, input_range, measure
from medad_serve.runtime import FloatArray, Runtime, Selection, batches, open_runtime
from medad_serve.spec import PRECISION, Calibration, InputSpec, Manifest, OutputSpec, Parity, PrepSpec

EXPORTERS: dict[str, Callable[[AnomalyModel, Shape, Path], None]] = {
    "onnx": export_onnx,
    "torchscript": export_torchscript,
}
DARK = 0.2
"""Of what is typical of abnormal items: normals below it are dark."""
HEATMAP_QUANTILE = 0.999
_PACKAGES = (
    "medad-serve",
    "torch",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "numpy",
    "opencv-python-headless",
    "pydicom",
    "imagecodecs",
    "lightning",
    "monai",
    "nibabel",
    "scipy",
    "torchmetrics",
    "pydantic",
    "torchserve",
    "torch-model-archiver",
)
Say = Callable[[str], None]


@dataclass(frozen=True)
class Part:
    """Held-out inputs and the model that never saw them: the exported one, or that of an out-of-fold round."""

    model: AnomalyModel
    tensor: FloatArray | Selection
    labels: NDArray[np.int64]
    patients: tuple[str, ...]


@dataclass(frozen=True)
class Bundle:
    """Everything that an export needs."""

    name: str
    version: str
    family: str
    settings: dict[str, object]
    model: AnomalyModel
    shape: Shape
    input: InputSpec
    prep: PrepSpec
    parts: tuple[Part, ...]
    method: str
    folds: int
    aggregation: str
    policy: str
    fingerprint: str
    parity_inputs: FloatArray
    seen: tuple[str, ...]


def score_parts(bundle: Bundle, runtime_of: Callable[[AnomalyModel], Runtime]) -> Calibration:
    """Calibrate on the scores that each part's own model gives, through the runtime that will serve."""
    scores: list[NDArray[np.float64]] = []
    scales: dict[int, list[float]] = {0: [], 1: []}
    looks: list[Statistics] = []
    for part in bundle.parts:
        found = []
        for rows, outputs in batches(runtime_of(part.model), part.tensor, ["score", "heatmap"]):
            found.append(outputs["score"].astype(np.float64))
            for label, heatmap in zip(part.labels[rows], outputs["heatmap"], strict=True):
                scales[int(label)].append(float(np.quantile(heatmap, HEATMAP_QUANTILE)))
            looks.append(measure(part.tensor[rows][part.labels[rows] == 0], bundle.prep))
        scores.append(np.concatenate(found))
    if not all(np.isfinite(s).all() for s in scores):
        raise MedadError("the model gives scores that are not finite", "Train again with a lower learning rate")
    held_out = HeldOut(
        np.concatenate(scores),
        np.concatenate([p.labels for p in bundle.parts]),
        tuple(name for p in bundle.parts for name in p.patients),
    )
    if np.ptp(held_out.scores) == 0:
        raise MedadError("the model gives every held-out item the same score", "Train it longer or otherwise")
    return calibrate(
        held_out,
        fingerprint=bundle.fingerprint,
        method=bundle.method,
        folds=bundle.folds,
        aggregation=bundle.aggregation,
        default_policy=bundle.policy,
        heatmap_scale=full_color(scales[0], scales[1]),
        inputs=input_range(looks),
    )


def full_color(normal: Sequence[float], abnormal: Sequence[float]) -> float:
    """Return the value of a heatmap that takes full colour, of high values of held-out items.

    It is typical of normals, but a classifier's map leaves these dark: then it is typical of abnormal items.
    """
    scale = float(np.median(normal))
    bright = float(np.median(abnormal)) if len(abnormal) else 0.0
    return bright if scale < DARK * bright else scale


def _exported(bundle: Bundle, kind: str, folder: Path) -> Callable[[AnomalyModel], Runtime]:
    """Return a function that opens a model through its own exported graph; the bundle's stands in ``folder``."""

    def open_model(model: AnomalyModel) -> Runtime:
        if model is bundle.model:
            return open_runtime(folder, kind, model.outputs)
        with tempfile.TemporaryDirectory() as scratch:
            EXPORTERS[kind](model, bundle.shape, Path(scratch) / GRAPHS[kind])
            return open_runtime(Path(scratch), kind, model.outputs)

    return open_model


def _export_one(bundle: Bundle, kind: str, folder: Path) -> tuple[Calibration, Parity]:
    EXPORTERS[kind](bundle.model, bundle.shape, folder / GRAPHS[kind])
    open_model = _exported(bundle, kind, folder)
    calibration = score_parts(bundle, open_model)
    cutoffs = [c.value for c in calibration.item.cutoffs]
    parity = check_parity(
        kind,
        open_model(bundle.model),
        EagerRuntime(bundle.model),
        bundle.parity_inputs,
        bundle.model.outputs,
        cutoffs,
    )
    return calibration, parity


def _output_specs(bundle: Bundle) -> tuple[OutputSpec, ...]:
    found = EagerRuntime(bundle.model).run(bundle.parity_inputs[:2], bundle.model.outputs)
    return tuple(OutputSpec(name=name, shape=found[name].shape[1:]) for name in bundle.model.outputs)


def package_versions() -> dict[str, str]:
    """Return the versions that an export depends on."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def export(bundle: Bundle, formats: Sequence[str], target: Path, say: Say = lambda _: None) -> None:
    """Write the artifact directory ``target``; raises MedadError and leaves nothing where a gate fails."""
    if bundle.method == "validation":
        raise MedadError(
            "the run has no cutoffs to export: the scores of its validation patients chose the checkpoint",
            "Train without fold, or with calibration.method=out_of_fold",
        )
    unknown = set(formats) - set(EXPORTERS)
    if unknown or not formats:
        raise MedadError(f"there is no export format {', '.join(sorted(unknown))}", f"Choose: {', '.join(EXPORTERS)}")
    calibrations: dict[str, Calibration] = {}
    parities: list[Parity] = []
    with whole_directory(target) as folder:
        for kind in dict.fromkeys(formats):
            calibration, parity = _export_one(bundle, kind, folder)
            calibrations[f"{kind}/{PRECISION}"] = calibration
            parities.append(parity)
            say(
                f"{kind}: parity on {parity.inputs} held-out inputs, largest difference "
                f"{parity.max_absolute_difference:.1e} ({parity.max_relative_difference:.1e} relative), "
                f"{parity.flips} of {parity.decisions} decisions flipped"
            )
        manifest = Manifest(
            name=bundle.name,
            model=bundle.family,
            version=bundle.version,
            model_settings=bundle.settings,
            parameters=count_parameters(bundle.model),
            input=bundle.input,
            prep=bundle.prep,
            input_shape=bundle.shape,
            outputs=_output_specs(bundle),
            default_policy=bundle.policy,
            calibrations=calibrations,
            parity=tuple(parities),
            seen=bundle.seen,
            packages=package_versions(),
            files={},
        )
        write_manifest(folder, manifest)
