from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import nibabel
import numpy as np
import pytest
from click.testing import CliRunner, Result

from medad_serve.cli.main import cli
from medad_serve.errors import MedadError
from medad_serve.io import decode
from medad_serve.spec import Regions, Window
from medad_serve.vertebrae import INDEX, crop_scan, patient_of, read_index

SHAPE = (40, 36, 60)
AFFINE = np.array([[-2.0, 0, 0, 30], [0, 2.0, 0, -50], [0, 0, 2.0, -10], [0, 0, 0, 1]])
SPEC = Regions(size=(32, 32, 32), spacing_mm=1.5, window=Window(center=400, width=1800))
BOXES = {20: (slice(12, 26), slice(10, 26), slice(36, 46)), 21: (slice(12, 26), slice(10, 26), slice(20, 30))}
"""VerSe's L1 and L2."""


def _write(folder: Path, name: str, values: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, affine), folder / name)
    return folder / name


def _scan(folder: Path, **boxes: tuple[slice, slice, slice]) -> tuple[Path, Path]:
    """A CT that rises towards the patient's left, and a mask of boxes."""
    ct = np.broadcast_to(np.arange(SHAPE[0], dtype=np.int16)[:, None, None] * 20, SHAPE)
    labels = np.zeros(SHAPE, np.uint8)
    for label, box in BOXES.items():
        labels[box] = label
    for label, box in boxes.items():
        labels[box] = int(label.removeprefix("label"))
    return _write(folder, "scan one_ct.nii.gz", ct), _write(folder, "mask.nii.gz", labels)


def _crop(*arguments: object) -> Result:
    small = ["--size", "32", "--spacing", "1.5"]
    return CliRunner().invoke(cli, ["crop-vertebrae", *map(str, arguments), *small])


def _fault(result: Result) -> str:
    assert isinstance(result.exception, MedadError)
    text = str(result.exception)
    assert "\n" not in text
    return text


def test_every_whole_vertebra_becomes_a_file_with_its_place(tmp_path: Path) -> None:
    ct, mask = _scan(tmp_path, label22=(slice(12, 26), slice(10, 26), slice(0, 12)))
    result = _crop(ct, mask, tmp_path / "out", "--patient", "p7")
    assert result.exit_code == 0, result.exception
    names = ["vol_p7_L1.npy", "vol_p7_L2.npy"]
    assert result.stdout.split() == [str(tmp_path / "out" / name) for name in names]
    assert "left out: L3 reaches the border of the scan" in result.stderr
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [INDEX, *names]
    facts = read_index(tmp_path / "out")["vol_p7_L2.npy"]
    assert (facts.patient, facts.level, facts.label, facts.spacing_mm) == ("p7", "L2", 21, 1.5)
    volume = np.load(tmp_path / "out" / "vol_p7_L2.npy")
    assert (volume.shape, volume.dtype) == ((32, 32, 32), np.float32)
    index = np.array([16, 16, 20, 1])
    hu = (np.linalg.inv(AFFINE) @ np.array(facts.affine) @ index)[0] * 20
    assert volume[16, 16, 20] == pytest.approx((hu - (399.5 - 899.5)) / 1799, abs=1e-5)
    middle = np.array(facts.affine) @ [15.5, 15.5, 15.5, 1]
    assert middle[:3] == pytest.approx((AFFINE @ [18.5, 17.5, 24.5, 1])[:3])


def test_nifti_crops_read_back_as_the_npy_ones(tmp_path: Path) -> None:
    ct, mask = _scan(tmp_path)
    for kind in ("npy", "nifti"):
        assert _crop(ct, mask, tmp_path / kind, "--patient", "a", "--format", kind).exit_code == 0
    read = decode(tmp_path / "nifti" / "vol_a_L1.nii.gz")
    assert np.array_equal(read.array, np.load(tmp_path / "npy" / "vol_a_L1.npy"))
    assert read.affine == pytest.approx(np.array(read_index(tmp_path / "npy")["vol_a_L1.npy"].affine), abs=1e-4)


def test_other_patients_are_added_and_the_same_one_is_not_overwritten(tmp_path: Path) -> None:
    ct, mask = _scan(tmp_path)
    out = tmp_path / "out"
    assert _crop(ct, mask, out).exit_code == 0
    assert _crop(ct, mask, out, "--patient", "b").exit_code == 0
    assert sorted(read_index(out)) == [
        *("vol_b_L1.npy", "vol_b_L2.npy", "vol_scan-one-ct_L1.npy", "vol_scan-one-ct_L2.npy")
    ]
    before = (out / "vol_b_L1.npy").stat().st_mtime_ns
    assert "already holds crops of patient b" in _fault(_crop(ct, mask, out, "--patient", "b"))
    assert (out / "vol_b_L1.npy").stat().st_mtime_ns == before


def test_force_replaces_all_crops_of_the_patient(tmp_path: Path) -> None:
    ct, mask = _scan(tmp_path)
    out = tmp_path / "out"
    assert _crop(ct, mask, out, "--patient", "b").exit_code == 0
    assert _crop(ct, mask, out, "--patient", "c").exit_code == 0
    _, fewer = _scan(tmp_path / "fewer", label20=(slice(12, 26), slice(10, 26), slice(46, 60)))
    assert _crop(ct, fewer, out, "--patient", "b", "--force").exit_code == 0
    assert sorted(read_index(out)) == ["vol_b_L2.npy", "vol_c_L1.npy", "vol_c_L2.npy"]
    assert not (out / "vol_b_L1.npy").exists()


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ct, mask = _scan(tmp_path)
    written = []

    def full(path: Path, array: np.ndarray) -> None:
        if written:
            raise OSError(28, "No space left on device")
        written.append(path)
        path.write_bytes(b"")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="No space"):
        crop_scan(ct, mask, tmp_path / "out", spec=SPEC)
    assert not (tmp_path / "out").exists()


def test_a_mask_on_another_grid_is_refused(tmp_path: Path) -> None:
    ct, mask = _scan(tmp_path)
    labels = np.asarray(nibabel.load(mask).dataobj)
    smaller = _write(tmp_path, "smaller.nii.gz", labels[:, :, :50])
    moved = AFFINE.copy()
    moved[2, 3] += 4
    beside = _write(tmp_path, "beside.nii.gz", labels, moved)
    assert "60x36x40 and 50x36x40" in _fault(_crop(ct, smaller, tmp_path / "out"))
    text = _fault(_crop(ct, beside, tmp_path / "out"))
    assert "4.0 mm apart" in text
    assert str(beside) in text
    assert not (tmp_path / "out").exists()


def test_no_whole_vertebra_is_refused_with_the_reasons(tmp_path: Path) -> None:
    ct, _ = _scan(tmp_path)
    labels = np.zeros(SHAPE, np.uint8)
    labels[12:26, 10:26, :10] = 22
    mask = _write(tmp_path, "cut.nii.gz", labels)
    assert "L3 reaches the border of the scan" in _fault(_crop(ct, mask, tmp_path / "out"))
    empty = _write(tmp_path, "empty.nii.gz", labels * 0)
    assert "neither VerSe nor TotalSegmentator" in _fault(_crop(ct, empty, tmp_path / "out"))


def test_two_scans_in_the_place_of_scan_and_mask_are_refused(tmp_path: Path) -> None:
    ct, _ = _scan(tmp_path)
    other = _write(tmp_path, "other.nii.gz", np.full(SHAPE, 0.5, np.float32))
    assert "not whole numbers" in _fault(_crop(ct, other, tmp_path / "out"))


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    ct, mask = _scan(tmp_path)
    (tmp_path / "bad.nii.gz").write_bytes(b"\x1f\x8b damaged")
    assert "bad.nii.gz" in _fault(_crop(ct, tmp_path / "bad.nii.gz", tmp_path / "out"))
    np.save(tmp_path / "plain.npy", np.zeros((60, 36, 40), np.float32))
    assert "plain.npy does not say where it lies" in _fault(_crop(tmp_path / "plain.npy", mask, tmp_path / "out"))


def test_a_patient_that_no_file_name_can_hold_is_refused(tmp_path: Path) -> None:
    ct, mask = _scan(tmp_path)
    assert "--patient" in _fault(_crop(ct, mask, tmp_path / "out", "--patient", "a/b"))


@pytest.mark.parametrize(
    ("name", "patient"),
    [("sub-ct_label-22_ct.nii.gz", "sub-ct-label-22-ct"), ("a.b.nii", "a.b"), ("x y.zip", "x-y"), ("1.gz.nii", "1.gz")],
)
def test_the_patient_is_named_after_the_file(name: str, patient: str) -> None:
    assert patient_of(Path("folder") / name) == patient


def test_a_damaged_index_is_refused_by_name(tmp_path: Path) -> None:
    ct, mask = _scan(tmp_path)
    out = tmp_path / "out"
    crop_scan(ct, mask, out, spec=SPEC, patient="a")
    (out / INDEX).write_text(json.dumps({"vol_a_L1.npy": {"patient": "a"}}))
    assert INDEX in _fault(_crop(ct, mask, out, "--patient", "b"))
    assert not list(out.glob("vol_b*"))


@pytest.mark.slow
def test_scans_cropped_at_the_same_time_all_reach_the_index(tmp_path: Path) -> None:
    ct, mask = _scan(tmp_path)
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        waiting = [
            pool.apply_async(crop_scan, (ct, mask, tmp_path / "out"), {"spec": SPEC, "patient": f"p{i}"})
            for i in range(6)
        ]
        for job in waiting:
            job.get(timeout=120)
    assert len(read_index(tmp_path / "out")) == 12
