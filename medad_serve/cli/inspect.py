"""``inspect``: what a .mar holds and whether it is whole, without running any of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from medad_serve.errors import one_line

if TYPE_CHECKING:
    from medad_serve.export.store import Verified


@click.command()
@click.argument("mar", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print the manifest and what was checked as JSON.")
def inspect(mar: Path, as_json: bool) -> None:
    """Verify MAR, an archive that anybody may have made, and show its manifest."""
    from medad_serve.export.store import inspect as verified

    found = verified(mar, index=False)
    if as_json:
        manifest = found.archive.manifest.model_dump(mode="json")
        config = found.archive.config.model_dump(mode="json")
        checked = {"sha256": found.digest, "in_index": found.indexed}
        click.echo(json.dumps({**checked, "config": config, "manifest": manifest}))
        return
    for name, text in _facts(found):
        click.echo(f"{name:<12}{one_line(text)}")
    click.echo("Checked: layout, members, the digest of every file, the handler against the one installed")
    if not found.indexed:
        click.echo("Not checked: where it comes from. No index.json lies beside it; serve needs one")


def _facts(found: Verified) -> Iterator[tuple[str, str]]:
    manifest, config, sizes = found.archive
    yield "name", f"{manifest.name} {manifest.version} (model {manifest.model}, {manifest.parameters:,} parameters)"
    yield "sha256", found.digest + (" (as in index.json)" if found.indexed else "")
    settings = manifest.input.model_dump(exclude_defaults=True)
    yield "input", ", ".join(f"{key}={value}" for key, value in settings.items()) or "anything that decodes"
    yield "prepared", f"{manifest.input_shape}, {manifest.prep.window}"
    yield "outputs", ", ".join(f"{output.name} {output.shape}" for output in manifest.outputs)
    for key, made in manifest.calibrations.items():
        for level, part in (("item", made.item), ("patient", made.patient)):
            cutoffs = ", ".join(f"{cutoff.policy} at {cutoff.value:.6g}" for cutoff in part.cutoffs)
            yield "cutoffs", f"{key}, {level}: {cutoffs} ({part.n} scores of {part.patients} patients, {made.method})"
    yield "default", manifest.default_policy
    for parity in manifest.parity:
        yield (
            "parity",
            f"{parity.runtime}: {parity.flips} of {parity.decisions} decisions differ from the trained model's",
        )
    for proof in manifest.fidelity:
        ranked = "" if proof.auroc is None else f"AUROC {proof.auroc:.4f} for {proof.auroc_trained:.4f} in float32, "
        yield "fidelity", f"{proof.variant}: {ranked}{proof.agreement:.1%} of {proof.items} items decided alike"
    for variant, why in manifest.refused.items():
        yield "left out", f"{variant}: {why}"
    if manifest.tuning:
        yield "tuned", f"{manifest.tuning.variant} on {manifest.tuning.machine}"
    batches = f"batches of {config.batchSize} within {config.maxBatchDelay} ms, {config.responseTimeout} s to answer"
    yield "served", f"{config.handler.runtime}, {config.minWorkers} to {config.maxWorkers} workers, {batches}"
    if limits := config.handler.limits.model_dump(exclude_defaults=True):
        yield "limits", ", ".join(f"{name}={value}" for name, value in limits.items())
    for file, size in sizes.items():
        yield "file", f"{file}, {size:,} bytes {manifest.files.get(file, '(no digest but that of the whole)')}"
