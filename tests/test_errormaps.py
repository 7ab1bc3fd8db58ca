from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from medad_serve.cli.main import cli
from medad_serve.errormaps import error_map
from medad_serve.errors import MedadError
from medad_serve.io import Pixels
from medad_serve.models import family
from medad_serve.spec import PrepSpec, Regions, Window
from medad_serve.training.config import resolve
from medad_serve.training.run import BEST, DONE, Run, create_run
from medad_serve.vertebrae import CropFacts

SIDE = 16
AFFINE = np.array([[0, 0, -2.0, 31], [0, -2.0, 0, -4], [2.0, 0, 0, 105.5], [0, 0, 0, 1]])
TRIAL = {"hidden": [4, 4], "latent_dim": 4, "num_embeddings": 8, "residual_layers": 1}


def _volumes(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        volume = np.random.default_rng(number).random((SIDE, SIDE, SIDE), np.float32)
        np.save(folder / f"vol_p{number}_L1.npy", volume)
    return folder


def _labels(folder: Path) -> None:
    names = sorted(p.name for p in folder.glob("vol_*"))
    lines = [f"{name},{int(i >= len(names) - 4)}" for i, name in enumerate(names)]
    (folder / "labels.csv").write_text("file,label\n" + "\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of an untrained model, finished by name."""
    home = tmp_path_factory.mktemp("errormaps")
    data = _volumes(home / "data", 18)
    _labels(data)
    return _finished("vqvae3d", data, home, [f"settings.{k}={json.dumps(v)}" for k, v in TRIAL.items()])


def _finished(model: str, data: Path, home: Path, settings: list[str]) -> Run:
    size = [f"prep.size=[{SIDE},{SIDE},{SIDE}]", f"input.size=[{SIDE},{SIDE},{SIDE}]"]
    loose = ["calibration.policy=specificity=0.5", "device=cpu"]
    made = create_run(resolve(model, f"volumes:{data}", None, [*size, *loose, *settings]), home / "runs")
    torch.manual_seed(0)
    built = made.build()
    torch.save({"state_dict": {f"model.{k}": v for k, v in built.state_dict().items()}}, made.path / BEST)
    (made.path / DONE).write_text("")
    return made


def _call(run: Run, out: Path, data: Path) -> Result:
    return CliRunner().invoke(cli, ["errormaps", str(run.path), "--data", f"volumes:{data}", str(out)])


def _expected(run: Run, volume: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        x = torch.from_numpy(volume)[None, None]
        return ((x - run.trained()(x)["reconstruction"]) ** 2)[0, 0].numpy()


def test_the_map_of_a_crop_lies_where_the_index_says(run: Run, tmp_path: Path) -> None:
    data = _volumes(tmp_path / "data", 2)
    facts = CropFacts(
        patient="p1",
        level="L1",
        label=20,
        spacing_mm=2,
        window=Window(center=400, width=1800),
        affine=AFFINE.tolist(),
    )
    (data / "vertebrae.json").write_text(json.dumps({"vol_p1_L1.npy": facts.model_dump(mode="json")}))
    result = _call(run, tmp_path / "out", data)
    assert result.exit_code == 0, result.exception
    image = nibabel.load(tmp_path / "out" / "vol_p1_L1_error.nii.gz")
    expected = _expected(run, np.load(data / "vol_p1_L1.npy"))
    assert np.abs(np.asarray(image.dataobj).T - expected).max() < 1e-6
    index = np.array([3, 5, 7])
    assert image.affine @ [*index[::-1], 1] == pytest.approx(AFFINE @ [*index, 1], abs=1e-4)
    assert "vol_p0_L1_error.nii.gz: where it lies is not known" in result.stderr
    assert "vol_p1_L1_error" not in result.stderr


def test_the_list_tells_label_mean_error_and_score(run: Run, tmp_path: Path) -> None:
    data = _volumes(tmp_path / "data", 6)
    _labels(data)
    assert _call(run, tmp_path / "out", data).exit_code == 0
    with (tmp_path / "out" / "errormaps.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == ["0", "0", "1", "1", "1", "1"]
    volume = np.load(data / "vol_p0_L1.npy")
    assert float(rows[0]["mean_error"]) == pytest.approx(_expected(run, volume).mean(), rel=1e-4)
    with torch.inference_mode():
        score = run.trained()(torch.from_numpy(volume)[None, None])["score"].item()
    assert float(rows[0]["score"]) == pytest.approx(score, rel=1e-4)


def test_the_map_of_a_nifti_has_its_shape_and_affine(run: Run, tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "site").mkdir(parents=True)
    affine = np.array([[0, 1.5, 0, -20], [0, 0, -1.5, 30], [-1.5, 0, 0, 60], [0, 0, 0, 1.0]])
    stored = np.random.default_rng(0).random((SIDE, SIDE, SIDE), np.float32)
    nibabel.save(nibabel.Nifti1Image(stored, affine), data / "site" / "vol_a_T9.nii.gz")
    result = _call(run, tmp_path / "out", data)
    assert result.exit_code == 0, result.exception
    image = nibabel.load(tmp_path / "out" / "site" / "vol_a_T9_error.nii.gz")
    assert image.affine == pytest.approx(affine, abs=1e-5)
    # Stored axes run to inferior, right, posterior: slices up, rows back, columns left are (0 turned, 2, 1 turned).
    turned = np.ascontiguousarray(stored.transpose(0, 2, 1)[::-1, :, ::-1])
    expected = _expected(run, turned)[::-1, :, ::-1].transpose(0, 2, 1)
    assert np.asarray(image.dataobj) == pytest.approx(expected, abs=1e-6)


def test_maps_of_regions_lie_in_their_place_on_the_scan(run: Run) -> None:
    window = Window(center=400, width=1800)
    prep = PrepSpec(size=(SIDE,) * 3, regions=Regions(size=(SIDE,) * 3, spacing_mm=2, window=window))
    scan = Run(run.path, run.config.model_copy(update={"prep": prep}), run.split)
    shape = (50, 30, 30)
    labels = np.zeros(shape, np.int32)
    labels[8:14, 12:18, 12:18], labels[36:42, 12:18, 12:18] = 21, 20
    affine = np.array([[0, 0, -2.0, 0], [0, -2.0, 0, 0], [2.0, 0, 0, 0], [0, 0, 0, 1]])
    hu = np.random.default_rng(0).normal(300, 200, shape).astype(np.float32)
    found, score = error_map(run.trained(), scan, Pixels(hu, "nifti", affine=affine, labels=labels))
    assert found.shape == shape
    covered = np.argwhere(found > 0)
    assert covered.min(axis=0) == pytest.approx([11 - 8, 7, 7], abs=1)
    assert (found[22:28] == 0).all()
    assert (found[36:42, 12:18, 12:18] > 0).all()
    assert np.isfinite(score)


def test_files_that_cannot_be_used_are_told_and_the_others_written(run: Run, tmp_path: Path) -> None:
    data = _volumes(tmp_path / "data", 2)
    np.save(data / "vol_p1_L1.npy", np.full((SIDE,) * 3, 7, np.float32))
    result = _call(run, tmp_path / "out", data)
    assert "vol_p1_L1.npy: the values lie outside 0 to 1" in result.stderr
    assert [p.name for p in (tmp_path / "out").glob("*.nii.gz")] == ["vol_p0_L1_error.nii.gz"]


def test_nothing_is_written_where_no_file_can_be_used(run: Run, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    np.save(data / "vol_p_L1.npy", np.zeros((8, 8, 8), np.float32))
    result = _call(run, tmp_path / "out", data)
    assert isinstance(result.exception, MedadError)
    assert "none of 1 files could be used" in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_left_alone(run: Run, tmp_path: Path) -> None:
    data = _volumes(tmp_path / "data", 1)
    result = _call(run, data, data)
    assert isinstance(result.exception, MedadError)
    assert "not an empty folder" in str(result.exception)
    assert [p.name for p in data.iterdir()] == ["vol_p0_L1.npy"]


def test_a_model_that_reconstructs_nothing_is_refused(run: Run, tmp_path: Path) -> None:
    assert "reconstruction" not in family("fracture").trial().build().outputs
    data = Path(run.config.data.partition(":")[2])
    settings = ["settings.layers=[1]", f"init={run.path}"]
    other = _finished("fracture", data, tmp_path, settings)
    result = _call(other, tmp_path / "out", data)
    assert isinstance(result.exception, MedadError)
    assert "fracture, which reconstructs nothing" in str(result.exception)
