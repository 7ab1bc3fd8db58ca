"""``info``: what is installed, what this machine has, which models there are."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from typing import Any

import click

from medad_serve.cli.console import out, table
from medad_serve.errors import MedadError


def _java() -> dict[str, str]:
    from medad_serve.java import java_home, java_version

    try:
        home = java_home()
        return {"version": str(java_version(home)), "home": str(home)}
    except MedadError as error:
        return {"error": str(error)}


def _devices() -> list[str]:
    import torch

    return ["cpu", *(f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count()))]


def _runtimes() -> dict[str, str]:
    import onnxruntime
    import torch

    from medad_serve.runtime import lacking

    providers = ", ".join(p.removesuffix("ExecutionProvider") for p in onnxruntime.get_available_providers())
    return {
        "onnx": f"onnxruntime {onnxruntime.__version__} ({providers})",
        "torchscript": f"torch {torch.__version__}",
        "openvino": lacking("openvino") or f"openvino {version('openvino')}",
    }


def collect() -> dict[str, Any]:
    """Return everything that ``info`` shows."""
    import medad_serve
    from medad_serve.export.artifact import package_versions
    from medad_serve.models import count_parameters, families

    models = {}
    for name, family in families().items():
        models[name] = {
            "summary": family.summary,
            "parameters": count_parameters(family.build()),
            "input_shape": family.shape(family.prep),
            "modalities": family.input.modalities,
            "phantom": family.phantom,
        }
    return {
        "medad_serve": medad_serve.__version__,
        "python": platform.python_version(),
        "packages": package_versions(),
        "java": _java(),
        "devices": _devices(),
        "runtimes": _runtimes(),
        "models": models,
    }


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(as_json: bool) -> None:
    """Show versions, Java, devices, runtimes and every registered model."""
    found = collect()
    if as_json:
        out.print(json.dumps(found, indent=1), markup=False)
        return
    facts = table("medad-serve", "what", "found")
    facts.add_row("medad-serve", found["medad_serve"])
    facts.add_row("python", found["python"])
    facts.add_row("java", " ".join(found["java"].values()))
    facts.add_row("devices", ", ".join(found["devices"]))
    for group in ("runtimes", "packages"):
        for name, text in found[group].items():
            facts.add_row(name, text)
    out.print(facts, markup=False)
    models = table("models", "name", "parameters", "input", "reads", "summary")
    for name, model in found["models"].items():
        shape = "x".join(map(str, model["input_shape"]))
        models.add_row(
            name, f"{model['parameters']:,}", shape, ", ".join(model["modalities"]) or "any", model["summary"]
        )
    out.print()
    out.print(models)
