"""Volumes along the whole line: phantoms, training, export, and every form in which a volume can be sent."""

from __future__ import annotations

import base64
import gzip
import io
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from medad_serve.client import Client
from medad_serve.data.phantoms.vertebrae import write_vertebrae
from medad_serve.errors import InputError
from medad_serve.evaluation import evaluate, export_run
from medad_serve.export.archive import archive
from medad_serve.predictor import Options, Predictor
from medad_serve.server import Ports, Server
from medad_serve.training.config import resolve
from medad_serve.training.fit import fit
from medad_serve.training.run import create_run

SIDE = 32
SMALL = (
    f"prep.size=[{SIDE},{SIDE},{SIDE}]",
    f"input.size=[{SIDE},{SIDE},{SIDE}]",
    "settings.hidden=[8,16]",
    "settings.latent_dim=8",
    "settings.num_embeddings=16",
    "settings.residual_layers=1",
    "train.max_epochs=2",
    "train.batch_size=4",
    "calibration.policy=specificity=0.8",
    "calibration.method=held_out",
)


@pytest.fixture(scope="module")
def vertebrae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("vertebrae") / "data"
    write_vertebrae(root, healthy=46, abnormal=8, slices=1, seed=0, size=SIDE)
    return root


@pytest.fixture(scope="module")
def served(vertebrae: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported artifact of a 3D model."""
    run = create_run(resolve("vqvae3d", f"volumes:{vertebrae}", None, SMALL), tmp_path_factory.mktemp("runs"))
    fit(run, run.prepared())
    return export_run(run, ["onnx", "torchscript"])


@pytest.fixture(scope="module")
def predictor(served: Path) -> Predictor:
    return Predictor.load(served)


@pytest.fixture(scope="module")
def volume(vertebrae: Path) -> np.ndarray:
    return np.load(sorted(vertebrae.glob("vol_*.npy"))[0])


def _npy(volume: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, volume)
    return buffer.getvalue()


def _nifti(volume: np.ndarray, affine: np.ndarray) -> bytes:
    return nib.Nifti1Image(volume, affine).to_bytes()


def _zip(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "."), data)
    return buffer.getvalue()


SPL = np.array([[0, 0, -1.0, 0], [0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
"""Array axes (superior, posterior, left) in RAS+ millimetres."""


def test_a_volume_is_one_item_with_its_own_level(predictor: Predictor, volume: np.ndarray) -> None:
    answer = predictor.predict([_npy(volume)])[0]
    assert (answer.level, answer.slices, answer.regions) == ("volume", None, None)
    assert (answer.input.kind, answer.input.frames) == ("array", SIDE)
    assert 0 < answer.p_value <= 1


def test_the_manifest_says_which_outputs_count_deviations(predictor: Predictor) -> None:
    assert {output.name for output in predictor.manifest.outputs if output.deviations} == {"score", "heatmap"}


def test_the_same_volume_scores_the_same_in_every_form(predictor: Predictor, volume: np.ndarray) -> None:
    nifti = _nifti(volume, SPL)
    turned = nib.Nifti1Image(volume, SPL).as_reoriented([[2, 1], [0, -1], [1, 1]]).to_bytes()
    forms = [_npy(volume), nifti, turned, _zip(a__npy=_npy(volume)), _zip(a__nii=nifti)]
    scores = [answer.score for answer in predictor.predict(forms)]
    assert scores == pytest.approx([scores[0]] * len(forms), rel=1e-6)


def test_a_neighbour_that_cannot_be_used_changes_nothing(predictor: Predictor, volume: np.ndarray) -> None:
    alone = predictor.predict([_npy(volume)])[0]
    hounsfield, small = _npy(volume * 1000), _npy(volume[:16])
    answers = predictor.predict([hounsfield, _npy(volume), small, _npy(volume[0])])
    assert answers[1].score == pytest.approx(alone.score, rel=1e-6)
    refused = [answers[i] for i in (0, 2, 3)]
    assert all(isinstance(a, InputError) and a.code == 422 for a in refused)
    assert "crop-vertebrae" in str(refused[0])
    assert "crop-vertebrae" in str(refused[1])


def test_heatmaps_cover_the_source(predictor: Predictor, volume: np.ndarray) -> None:
    asked = [Options(heatmap="npy"), Options(heatmap="png")]
    as_array, as_image = predictor.predict([_npy(volume)] * 2, asked)
    heat = np.load(io.BytesIO(base64.b64decode(as_array.heatmap.data)))
    assert heat.shape == (SIDE, SIDE, SIDE)
    assert as_image.heatmap.frame == as_array.heatmap.frame == int(np.argmax(heat.max(axis=(1, 2))))
    assert base64.b64decode(as_image.heatmap.data).startswith(b"\x89PNG")


def test_a_scan_with_its_mask_is_answered_vertebra_by_vertebra(predictor: Predictor) -> None:
    scan = np.full((150, 150, 260), -50, np.int16)  # R, A, S at 1 mm
    mask = np.zeros(scan.shape, np.uint8)
    for label, z in {22: 60, 21: 130, 20: 200}.items():
        block = np.s_[55:95, 60:90, z - 13 : z + 13]
        scan[block], mask[block] = 300, label
    affine = np.eye(4)
    body = _zip(ct__nii=_nifti(scan, affine), labels__nii=_nifti(mask, affine))
    alone, with_mask, heat = predictor.predict(
        [_nifti(scan, affine), body, body], [Options(), Options(), Options(heatmap="npy")]
    )
    assert isinstance(alone, InputError)
    assert "crop-vertebrae" in alone.hint
    assert with_mask.level == "patient"
    assert [region.region for region in with_mask.regions] == ["L1", "L2", "L3"]
    assert with_mask.score == pytest.approx(max(region.score for region in with_mask.regions))
    array = np.load(io.BytesIO(base64.b64decode(heat.heatmap.data)))
    assert array.shape == (260, 150, 150)  # S, P, L
    assert any("3 volumes" in warning for warning in with_mask.warnings)


def test_runtimes_agree_and_evaluation_reports_volumes(served: Path, volume: np.ndarray) -> None:
    onnx, torchscript = (
        Predictor.load(served, runtime=name).predict([_npy(volume)])[0] for name in ("onnx", "torchscript")
    )
    assert onnx.score == pytest.approx(torchscript.score, rel=1e-4)
    metrics, _ = evaluate(served)
    assert metrics["unit"] == "volume"
    assert metrics["volume"]["normal"] > 0
    assert "slice" not in metrics


def _series(volume: np.ndarray) -> dict[str, bytes]:
    """The volume as CT slices of 1 mm, in no order; stored as thousandths."""
    uid, members = generate_uid(), {}
    for index in np.random.default_rng(0).permutation(len(volume)):
        ds = FileDataset("", {}, preamble=b"\0" * 128, file_meta=FileMetaDataset())
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = CTImageStorage
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = generate_uid()
        ds.SeriesInstanceUID, ds.Modality = uid, "CT"
        ds.ImagePositionPatient, ds.ImageOrientationPatient = [0, 0, float(index)], [1, 0, 0, 0, 1, 0]
        ds.PixelSpacing, ds.SliceThickness = [1, 1], 1
        ds.RescaleSlope, ds.RescaleIntercept = "0.001", "0"
        ds.set_pixel_data(np.round(volume[index] * 1000).astype(np.uint16), "MONOCHROME2", 16)
        buffer = io.BytesIO()
        ds.save_as(buffer, enforce_file_format=True)
        members[f"{generate_uid()}__dcm"] = buffer.getvalue()
    return members


@pytest.mark.server
def test_every_form_is_answered_over_http_as_in_process(
    served: Path, predictor: Predictor, volume: np.ndarray, tmp_path: Path
) -> None:
    nifti = _nifti(volume, SPL)
    files = {
        "a.npy": _npy(volume),
        "b.nii": nifti,
        "c.nii.gz": gzip.compress(nifti),
        "d.zip": _zip(**_series(volume)),
        "e.npy": _npy(volume * 1000),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    archive(served, tmp_path / "store", name="vertebra")
    server = Server(tmp_path / "store", Ports.free())
    server.start()
    try:
        with Client(server.url("inference"), key_file=server.key_file) as client:
            answers = list(client.predict_many([tmp_path / name for name in files], "vertebra", heatmap="npy"))
    finally:
        server.stop()
    *good, bad = answers
    assert bad["error"]["code"] == 422
    expected = predictor.predict(list(files.values())[:4], [Options(heatmap="npy")] * 4)
    for found, wanted in zip(good, expected, strict=True):
        known = wanted.to_json()
        # The server's worker runs another number of threads, and sums of a convolution come out in another order.
        floats = ("score", "timing_ms", "heatmap")
        assert {k: v for k, v in found.items() if k not in floats} == {
            k: v for k, v in known.items() if k not in floats
        }
        assert found["score"] == pytest.approx(known["score"], rel=1e-5)
        here, there = (np.load(io.BytesIO(base64.b64decode(a["heatmap"]["data"]))) for a in (found, known))
        np.testing.assert_allclose(here, there, atol=1e-4 * float(there.max()))
    scores = [answer["score"] for answer in good]
    assert scores[:3] == pytest.approx([scores[0]] * 3, rel=1e-6)
    assert scores[3] == pytest.approx(scores[0], abs=0.05)  # stored in thousandths
