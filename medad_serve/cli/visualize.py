"""``visualize``: what a model sees, as figures and one report."""

from __future__ import annotations

from pathlib import Path

import click

from medad_serve.cli.console import decoding, out
from medad_serve.errors import MedadError


@click.command()
@click.argument("path", metavar="RUN|ARTIFACT", type=click.Path(path_type=Path))
@click.option("--data", help="Layout and folder [default: the data of the run, test patients].")
@click.option("--out", "target", type=click.Path(path_type=Path), help="Folder of the figures [default: RUN/report].")
@click.option("--count", default=12, show_default=True, type=click.IntRange(1), help="Items shown.")
@click.option("--runtime", help="e.g. onnx, openvino/int8 [default: eager for a run, onnx for an artifact].")
@click.option("--policy", help="Cutoff policy [default: the model's].")
def visualize(
    path: Path, data: str | None, target: Path | None, count: int, runtime: str | None, policy: str | None
) -> None:
    """Draw what the model saw and made of it, its curves and its figures, into report.html with PNGs beside it.

    Shown are the highest-scoring, the median and the lowest-scoring items, normal and abnormal, of patients that
    the model never saw; volumes as three planes through the maximum of the heatmap.
    """
    if not path.is_dir():
        raise MedadError(f"{path} is no folder", "Name a run or an artifact, e.g. runs/ae")

    from medad_serve.visualize import visualize as draw

    report = draw(path, data=data, runtime=runtime, policy=policy, out=target, count=count, progress=decoding)
    out.print(str(report), markup=False)
