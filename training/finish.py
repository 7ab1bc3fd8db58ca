"""What follows the last epoch: the model's own ``finish`` on its best weights, and its latent codes."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medad_serve.data import Prepared
from medad_serve.files import whole_directory, write_whole
from medad_serve.models import AnomalyModel, Batch
from medad_serve.training.augment import Augment
from medad_serve.training.run import BEST, FINISH, LATENT, PREFIX, Run, read_checkpoint, weights_of, write_checkpoint

CODES = "codes"


class Normals:
    """Batches of healthy rows on a device, as often as asked for; where they vary, another variant each time."""

    def __init__(
        self,
        data: Prepared,
        rows: NDArray[np.int64],
        batch_size: int,
        device: torch.device,
        augment: Augment | None = None,
    ) -> None:
        self.data, self.rows, self.batch_size, self.device = data, rows[data.labels[rows] == 0], batch_size, device
        self.augment = augment

    def __iter__(self) -> Iterator[Tensor]:
        for start in range(0, len(self.rows), self.batch_size):
            x = torch.from_numpy(self.data.tensor[self.rows[start : start + self.batch_size]]).to(self.device)
            yield self.augment.items(x) if self.augment else x


def finish_model(
    model: AnomalyModel, folder: Path, train: Normals, held_out: Normals, labelled: Iterable[Batch]
) -> None:
    """Fit what scoring and probability need on the best weights of ``folder``, keep it there, its figures in a CSV."""
    kind = type(model)
    if kind.finish is AnomalyModel.finish and kind.fit_probability is AnomalyModel.fit_probability:
        return
    checkpoint = read_checkpoint(folder / BEST)
    model.load_state_dict(weights_of(checkpoint))
    model.to(train.device).eval()
    figures: list[dict[str, float]] = []
    model.finish(train, held_out, figures.append)
    model.fit_probability((_on(batch, train.device) for batch in labelled), figures.append)
    checkpoint["state_dict"] = {f"{PREFIX}{name}": value.cpu() for name, value in model.state_dict().items()}
    if figures:
        write_whole(folder / FINISH, _csv(figures))
    write_checkpoint(folder / BEST, checkpoint)


def _on(batch: Batch, device: torch.device) -> Batch:
    return Batch(*(part.to(device) for part in batch))


def _csv(figures: list[dict[str, float]]) -> str:
    columns = list(dict.fromkeys(name for row in figures for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(figures)
    return text.getvalue()


def save_codes(run: Run, data: Prepared) -> None:
    """Write the code map of every item of the run's data to ``latent/``, with an index of what each one is."""
    model = run.trained()
    if CODES not in model.outputs:
        return
    size = run.config.train.batch_size
    with torch.inference_mode():
        parts = [
            model(torch.from_numpy(np.array(data.tensor[start : start + size])))[CODES].numpy()
            for start in range(0, len(data.tensor), size)
        ]
    rows = [
        {"row": row, "label": int(data.labels[row]), "role": run.split.roles.get(patient, "")}
        for row, patient in enumerate(data.patients)
    ]
    with whole_directory(run.path / LATENT) as folder:
        np.save(folder / "codes.npy", np.concatenate(parts).astype(np.int32))
        with (folder / "index.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["row", "label", "role"], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
