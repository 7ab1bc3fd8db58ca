"""``crop-vertebrae`` and ``errormaps``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from medad_serve.cli.console import decoding, say
from medad_serve.cli.console import out as console


@click.command("crop-vertebrae")
@click.argument("ct", type=click.Path(path_type=Path))
@click.argument("labels", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--patient", help="Name of the patient in the file names [default: of CT's file name].")
@click.option("--spacing", default=1.0, show_default=True, type=click.FloatRange(0, min_open=True), help="mm.")
@click.option("--size", default=128, show_default=True, type=click.IntRange(8, 512), help="Voxels of each side.")
@click.option("--window", nargs=2, type=float, default=(400, 1800), show_default=True, help="Center and width, HU.")
@click.option("--scheme", type=click.Choice(["auto", "verse", "totalsegmentator"]), default="auto", show_default=True)
@click.option("--format", "kind", type=click.Choice(["npy", "nifti"]), default="npy", show_default=True)
@click.option("--force", is_flag=True, help="Replace crops of this patient that are there.")
def crop_vertebrae(
    ct: Path, labels: Path, out: Path, spacing: float, size: int, window: tuple[float, float], **options: Any
) -> None:
    """Cut each whole vertebra of CT into a volume vol_PATIENT_LEVEL in the folder OUT.

    LABELS is a mask on the grid of CT that numbers vertebrae as VerSe or TotalSegmentator does; which one is
    told by the order in which the numbers lie. A crop is centred on its vertebra, isotropic, windowed to 0..1,
    with axes from inferior to superior, anterior to posterior, right to left. OUT/vertebrae.json keeps where
    each lies on the scan.
    """
    from medad_serve.spec import Regions, Window, validated
    from medad_serve.vertebrae import crop_scan

    shown = validated(Window, {"center": window[0], "width": window[1]}, "--window")
    spec = Regions(size=(size, size, size), spacing_mm=spacing, window=shown)
    cropped = crop_scan(ct, labels, out, spec=spec, **options)
    for structure in cropped.left_out:
        say(f"left out: {structure.name} {structure.fault}")
    for path in cropped.files:
        console.print(str(path), markup=False)


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--data", help="Layout and folder, e.g. volumes:DIR [default: the data of the run].")
def errormaps(run: Path, out: Path, data: str | None) -> None:
    """Write what the model of RUN could not reconstruct of every case, as NIfTI, into the folder OUT.

    Each map is the squared reconstruction error on the grid of its source. OUT/errormaps.csv lists them.
    """
    from medad_serve.errormaps import write_errormaps

    written = write_errormaps(run, out, data=data, progress=decoding)
    for note in written.notes:
        say(note)
    console.print(f"{out}: {len(written.files)} error maps", markup=False)
