"""Trained model to artifact: variants that passed their gates, and the manifest; whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from medad_serve.artifact import GRAPHS, graph_of, write_manifest
from medad_serve.errors import MedadError
from medad_serve.export.bundle import Bundle
from medad_serve.export.graph import EagerRuntime
from medad_serve.export.variants import Exported, Exporter
from medad_serve.files import whole_directory
from medad_serve.models import count_parameters
from medad_serve.runtime import lacking
from medad_serve.spec import Fidelity, Manifest, OutputSpec, Parity, full_name

ALL = "all"
"""In place of a format: every variant that can be made here and passes its gate."""
_PACKAGES = (
    "medad-serve",
    "torch",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
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


def export(
    bundle: Bundle,
    formats: Sequence[str],
    target: Path,
    say: Say = lambda _: None,
    *,
    device: str = "cpu",
    gated: bool = True,
) -> None:
    """Write the artifact directory ``target``; raises MedadError and leaves nothing where a gate fails.

    ``formats`` name variants, as ``onnx`` or ``openvino/int8``. With ``all`` among them the others that this machine
    can make are added too; of these, one whose gate fails is left out and said. ``device`` runs what can run there
    (float16 is made for ``cuda``). Without ``gated`` a reduced precision is measured and let through: what is only
    timed need not tell anything apart.
    """
    if bundle.method == "validation":
        raise MedadError(
            "the run has no cutoffs to export: the scores of its validation patients chose the checkpoint",
            "Train without fold, or with calibration.method=out_of_fold",
        )
    for name in formats:
        if name != ALL:
            graph_of(name)
    named = tuple(dict.fromkeys(full_name(name) for name in formats if name != ALL))
    others = tuple(name for name in GRAPHS if name not in named and not lacking(name)) if ALL in formats else ()
    if not (named or others):
        raise MedadError("no export format is named", f"Choose: {', '.join(GRAPHS)}")
    for name in named:
        if reason := lacking(name):
            raise MedadError(reason, "Or choose another --format")
    with whole_directory(target) as folder, tempfile.TemporaryDirectory(prefix="medad-export-") as scratch:
        exporter = Exporter(bundle, Path(scratch), device, gated=gated)
        made, refused = exporter.export(named), {}
        for name in others:
            try:
                made |= exporter.export([name])
            except MedadError as error:
                refused[name] = error.message.removeprefix(f"{name}: ")
                say(f"left out: {name}: {refused[name]}")
        for name in {graph_of(variant) for variant in made}:
            shutil.copyfile(exporter.main.folder / name, folder / name)
        for variant, each in made.items():
            say(f"{variant}: {_sentence(each)}")
        write_manifest(folder, _manifest(bundle, made, refused))


def _manifest(bundle: Bundle, made: dict[str, Exported], refused: dict[str, str]) -> Manifest:
    return Manifest(
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
        calibrations={variant: each.calibration for variant, each in made.items()},
        parity=tuple(each.proof for each in made.values() if isinstance(each.proof, Parity)),
        fidelity=tuple(each.proof for each in made.values() if isinstance(each.proof, Fidelity)),
        refused=refused,
        probes={variant: each.probe for variant, each in made.items()},
        seen=bundle.seen,
        packages=package_versions(),
        files={},
    )


def _sentence(made: Exported) -> str:
    proof = made.proof
    if isinstance(proof, Parity):
        return (
            f"parity on {proof.inputs} held-out inputs, largest difference {proof.max_absolute_difference:.1e} "
            f"({proof.max_relative_difference:.1e} relative), {proof.flips} of {proof.decisions} decisions flipped"
        )
    ranked = f"correlation {proof.correlation:.4f}"
    if proof.auroc is not None and proof.auroc_trained is not None:
        ranked = f"AUROC {proof.auroc:.4f} for {proof.auroc_trained:.4f} in float32, {ranked}"
    kept = f", {proof.float_layers} of {proof.layers} layers left in float32" if proof.float_layers else ""
    return f"{ranked}, {proof.agreement:.1%} of {proof.items} held-out items decided alike{kept}"


def _output_specs(bundle: Bundle) -> tuple[OutputSpec, ...]:
    found = EagerRuntime(bundle.model).run(bundle.parity_inputs[:2], bundle.model.outputs)
    model = bundle.model
    return tuple(
        OutputSpec(name=name, shape=found[name].shape[1:], deviations=name in model.deviations)
        for name in model.outputs
    )


def package_versions(names: Sequence[str] = _PACKAGES) -> dict[str, str]:
    """Return the versions of packages that are installed, by default of those that an export depends on."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
