"""Tiles with bright defects of known place, and a model that points at brightness."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from medad_serve.calibration import HeldOut, calibrate
from medad_serve.data import load_prepared, read_table
from medad_serve.evaluation import Subject
from medad_serve.spec import InputSpec, PrepSpec

SIZE = (32, 32)


class Bright:
    """Scores an item by its brightest pixel, and points at brightness."""

    def run(self, batch: np.ndarray, names: list[str]) -> dict[str, np.ndarray]:
        flat = batch.reshape(len(batch), -1)
        found = {
            "score": flat.max(axis=1),
            "heatmap": batch,
            "severity": 10 * flat.max(axis=1) - 3,
            "probability": np.clip(flat.max(axis=1), 0, 1) ** 2,
            "reconstruction": np.full_like(batch, 0.3),
        }
        return {name: found[name] for name in names}


def draw_tile(path: Path, index: int, defect: float = 0.0, mask: Path | None = None) -> None:
    """Draw noise about 0.3 of a size of its own, and where asked a square that is ``defect`` brighter."""
    rng = np.random.default_rng(zlib.crc32("/".join(path.parts[-3:]).encode()))
    image = rng.normal(0.3, 0.03, (50 + index, 70 - index))
    marked = np.zeros(image.shape, np.uint8)
    if defect:
        side = 6 + index
        marked[10 : 10 + side, 20 : 20 + side] = 255
        image[marked > 0] += defect
    for file, values in ((path, np.clip(image, 0, 1) * 255), (mask, marked)):
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(file), values.round().astype(np.uint8))


@pytest.fixture(scope="session")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 good tiles to train on; 6 good, 5 holes and 5 cracks to test, one crack without a mask, graded severities."""
    root = tmp_path_factory.mktemp("tiles")
    for index in range(30):
        draw_tile(root / f"train/good/{index:03}.png", index % 10)
    for index in range(6):
        draw_tile(root / f"test/good/{index:03}.png", index)
    lines = ["path,severity"]
    for kind, step in (("hole", 0.12), ("crack", 0.05)):
        for index in range(5):
            name = f"{kind}/{index:03}"
            mask = None if name == "crack/004" else root / f"ground_truth/{name}_mask.png"
            draw_tile(root / f"test/{name}.png", index, step * (index + 1), mask)
            lines.append(f"test/{name}.png,{10 * step * (index + 1):.2f}")
    (root / "severity.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="session")
def make_subject(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Subject]:
    """``make_subject(outputs, family)``: a subject on the tiles whose model was made of those in ``train``."""
    prep = PrepSpec(size=SIZE)
    data = load_prepared(read_table(f"mvtec:{tiles}"), prep, InputSpec(), root=tmp_path_factory.mktemp("prepared"))
    normals = HeldOut(np.linspace(0.3, 0.42, 19), np.zeros(19, np.int64), tuple(map(str, range(19))))
    calibration = calibrate(
        normals, fingerprint=data.fingerprint, method="held_out", default_policy="specificity=0.9", heatmap_scale=1
    )

    def make(outputs: tuple[str, ...] = ("score", "heatmap"), family: str = "none") -> Subject:
        return Subject(
            name="tiles",
            family=family,
            outputs=outputs,
            runtime=Bright(),
            runtime_name="eager",
            calibration=calibration,
            policy="specificity=0.9",
            data=data,
            seen=frozenset(),
            prep=prep,
        )

    return make
