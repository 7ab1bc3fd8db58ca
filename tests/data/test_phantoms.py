"""Phantoms: what is written is readable, is what it says it is, and cannot be told apart by brightness alone."""

import re
from dataclasses import replace

import cv2
import numpy as np
import pydicom
import pytest
from click.testing import CliRunner
from sklearn.metrics import roc_auc_score
from written import digests, table

from medad_serve.cli.phantoms import command
from medad_serve.data import read_table
from medad_serve.data.phantoms import PHANTOMS, chest, hdmap, head_ct, oct, vertebrae, write_head_ct
from medad_serve.data.phantoms.ct_dicom import PADDING, Encoding, save_ct
from medad_serve.data.phantoms.head_anatomy import Head, draw_haemorrhage, head_ct_slice
from medad_serve.errors import MedadError

HEALTHY, ABNORMAL, SLICES = 12, 12, 2


def hu(path):
    dataset = pydicom.dcmread(path)
    stored = dataset.pixel_array.astype(np.float64)
    values = stored * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    if "PixelPaddingValue" in dataset:
        values[stored == dataset.PixelPaddingValue] = np.nan
    return values, dataset


def component(values, row, col, above=48):
    """Pixels brighter than ``above`` HU, freed of noise, that hang together with (row, col)."""
    smooth = cv2.GaussianBlur(np.nan_to_num(values, nan=-1000).astype(np.float32), (0, 0), 1.5)
    _, labels = cv2.connectedComponents((smooth > above).astype(np.uint8))
    label = labels[round(row), round(col)]
    assert label > 0
    return labels == label


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("phantoms") / "head-ct"
    write_head_ct(out, healthy=HEALTHY, abnormal=ABNORMAL, slices=SLICES, seed=3)
    return out


def test_files_lie_as_in_cq500(folder):
    files = sorted(folder.rglob("*.dcm"))
    assert len(files) == (HEALTHY + ABNORMAL) * SLICES
    assert (folder / "CQ500CT0 CQ500CT0" / "Unknown Study" / "CT Plain" / "CT000000.dcm") in files
    assert sorted(p.name for p in folder.iterdir() if p.is_file()) == ["haemorrhages.csv", "reads.csv"]


def test_every_file_is_a_complete_ct_image(folder):
    uids, kinds = set(), set()
    for path in folder.rglob("*.dcm"):
        values, dataset = hu(path)
        assert values.shape == (512, 512)
        assert dataset.SOPClassUID == pydicom.uid.CTImageStorage
        assert (dataset.Modality, dataset.BodyPartExamined) == ("CT", "HEAD")
        assert dataset.RescaleIntercept == -1024
        assert 0.35 < dataset.PixelSpacing[0] == dataset.PixelSpacing[1] < 0.5
        assert dataset.ImageOrientationPatient == [1, 0, 0, 0, 1, 0]
        uids.add(dataset.SOPInstanceUID)
        kinds.add((dataset.BitsStored, dataset.PixelRepresentation))
    assert len(uids) == (HEALTHY + ABNORMAL) * SLICES
    assert kinds == {(12, 0), (16, 1)}


@pytest.mark.parametrize("signed", [False, True])
def test_rle_holds_what_uncompressed_holds(tmp_path, signed):
    values, _ = head_ct_slice(np.random.default_rng(0), Head.draw(np.random.default_rng(1)))
    arrays = []
    for rle in (False, True):
        path = tmp_path / f"{rle}.dcm"
        encoding = Encoding(signed=signed, rle=rle)
        save_ct(path, values, patient="CQ500CT1", index=0, spacing_mm=0.4, encoding=encoding, seed=0)
        arrays.append(pydicom.dcmread(path).pixel_array)
    np.testing.assert_array_equal(*arrays)
    inside = arrays[0] != PADDING
    np.testing.assert_array_equal(
        arrays[0][inside], np.clip(np.rint(values + 1024), 0 if not signed else None, None)[inside]
    )
    assert inside.all() != signed


def test_majority_of_the_readers_is_the_truth(folder):
    bled = {row["patient"] for row in table(folder / "haemorrhages.csv")}
    reads = table(folder / "reads.csv")
    assert len(bled) == ABNORMAL
    assert len(reads) == HEALTHY + ABNORMAL
    for row in reads:
        for finding in ("ICH", "Fracture", "MassEffect", "MidlineShift"):
            majority = sum(int(row[f"R{r}:{finding}"]) for r in (1, 2, 3)) >= 2
            assert majority == (finding == "ICH" and row["name"] in bled)


def test_tissues_lie_in_their_ranges():
    rng = np.random.default_rng(5)
    for _ in range(10):
        head = Head.draw(rng)
        values, _ = head_ct_slice(rng, head)
        smooth = cv2.GaussianBlur(values, (0, 0), 2.5)
        depth = cv2.distanceTransform((smooth < 300).astype(np.uint8), cv2.DIST_L2, 5)
        _, labels = cv2.connectedComponents((depth > 16).astype(np.uint8))
        brain = smooth[(labels == labels[256, 150])]
        assert np.percentile(brain, 25) > 24
        assert np.percentile(brain, 99) < 41.5
        assert 0 < np.percentile(brain, 0.3) < 20  # the ventricles
        assert smooth[:8, :8].mean() == pytest.approx(-1000, abs=3)
        skull = smooth[smooth > 700]
        assert 0.05 < skull.size / smooth.size < 0.2
        assert skull.max() < 1500


def test_haemorrhages_lie_where_the_table_says(folder):
    for row in table(folder / "haemorrhages.csv"):
        values, dataset = hu(folder / row["file"])
        found = component(values, float(row["row"]), float(row["col"]))
        rows, cols = np.nonzero(found)
        spacing = float(dataset.PixelSpacing[0])
        diameter = 2 * np.sqrt(found.sum() / np.pi) * spacing
        assert diameter == pytest.approx(float(row["diameter_mm"]), abs=1.2)
        assert rows.mean() == pytest.approx(float(row["row"]), abs=1.5 / spacing)
        assert cols.mean() == pytest.approx(float(row["col"]), abs=1.5 / spacing)
        core = cv2.erode(found.astype(np.uint8), np.ones((5, 5))).astype(bool)
        assert values[core].mean() == pytest.approx(float(row["hu"]), abs=4)
        assert 55 <= float(row["hu"]) <= 75


def test_mask_covers_the_area_of_the_stated_disc_inside_the_brain():
    rng = np.random.default_rng(2)
    diameters = []
    for _ in range(40):
        head = Head.draw(rng)
        bleed = draw_haemorrhage(rng, head)
        without, _ = head_ct_slice(np.random.default_rng(0), head)
        _, mask = head_ct_slice(np.random.default_rng(0), head, bleed)
        assert 2 * np.sqrt(mask.sum() / np.pi) * head.spacing_mm == pytest.approx(bleed.diameter_mm, abs=0.3)
        assert cv2.GaussianBlur(without, (0, 0), 1.5)[mask].max() < 60  # no bone beneath it
        diameters.append(bleed.diameter_mm)
    assert 5 <= min(diameters) < 8
    assert 27 < max(diameters) <= 30


def test_same_seed_same_bytes_and_another_seed_others(tmp_path, folder):
    for name, seed in (("same", 3), ("other", 4)):
        write_head_ct(tmp_path / name, healthy=HEALTHY, abnormal=ABNORMAL, slices=SLICES, seed=seed)
    assert digests(tmp_path / "same") == digests(folder)
    shared = set(digests(tmp_path / "other").values()) & set(digests(folder).values())
    assert not shared


def test_brightness_alone_does_not_tell_a_haemorrhage():
    rng = np.random.default_rng(11)
    labels, means, tops = [], [], []
    for patient in range(100):
        head = Head.draw(rng)
        bleed = draw_haemorrhage(rng, head) if patient % 2 else None
        windowed = np.clip((head_ct_slice(rng, head, bleed)[0] - 39.5) / 79 + 0.5, 0, 1)
        image = cv2.resize(windowed, (64, 64), interpolation=cv2.INTER_AREA)
        labels.append(bleed is not None)
        means.append(image.mean())
        tops.append(np.percentile(image, 99))
    assert roc_auc_score(labels, means) < 0.8
    assert roc_auc_score(labels, tops) < 0.8


@pytest.mark.parametrize("kind", sorted(PHANTOMS))
def test_an_occupied_folder_is_refused_and_kept(tmp_path, kind):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(MedadError, match="not empty"):
        PHANTOMS[kind].write(tmp_path, healthy=1, abnormal=1, slices=1, seed=0)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_an_empty_folder_is_filled(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    write_head_ct(out, healthy=0, abnormal=1, slices=1)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert len(table(out / "reads.csv")) == 1


@pytest.mark.parametrize(
    ("kind", "module", "part"),
    [
        ("chest", chest, "save_film"),
        ("hdmap", hdmap, "acquire"),
        ("head-ct", head_ct, "save_ct"),
        ("oct", oct, "oct_scan"),
        ("vertebrae", vertebrae, "vertebra_volume"),
    ],
)
def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch, kind, module, part):
    def full(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(module, part, full)
    with pytest.raises(OSError, match="No space"):
        PHANTOMS[kind].write(tmp_path / "out", healthy=2, abnormal=2, slices=1, seed=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", sorted(PHANTOMS))
@pytest.mark.parametrize(
    "counts", [{"healthy": 0, "abnormal": 0, "slices": 1}, {"healthy": 1, "abnormal": 0, "slices": 0}]
)
def test_impossible_counts_are_refused(tmp_path, kind, counts):
    with pytest.raises(MedadError, match="at least one"):
        PHANTOMS[kind].write(tmp_path / "out", **counts, seed=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", sorted(PHANTOMS))
def test_command_writes_every_kind_as_its_layout_reads_it(tmp_path, kind):
    arguments = [kind, str(tmp_path / "out"), "--healthy", "2", "--abnormal", "1", "--slices", "1"]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "2 healthy and 1 abnormal" in result.output
    table = read_table(f"{PHANTOMS[kind].layout}:{tmp_path / 'out'}")
    assert sorted(sample.label for sample in table.samples) == [0, 0, 1]
    assert len(table.patients()) == 3


@pytest.mark.parametrize("kind", sorted(PHANTOMS))
def test_command_takes_the_counts_of_the_kind_and_its_help_tells_them(tmp_path, kind, monkeypatch):
    written = {}
    replaced = replace(PHANTOMS[kind], write=lambda out, **counts: written.update(counts))
    monkeypatch.setitem(PHANTOMS, kind, replaced)
    assert CliRunner().invoke(command, [kind, str(tmp_path), "--slices", "5"]).exit_code == 0
    phantom = PHANTOMS[kind]
    assert written == {"healthy": phantom.healthy, "abnormal": phantom.abnormal, "slices": 5, "seed": 0}
    told = "".join(CliRunner().invoke(command, ["--help"]).output.split())  # lines are broken within words
    for count in (phantom.healthy, phantom.abnormal, phantom.slices):
        assert re.search(rf"[:,]{kind}{count}[\],]", told)
