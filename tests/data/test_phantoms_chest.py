"""Chest films: anatomy where it belongs, opacities where the truth says, one picture however it is stored."""

import re
from collections import Counter

import cv2
import numpy as np
import pydicom
import pytest
from pydicom.pixels import apply_voi_lut
from sklearn.metrics import roc_auc_score
from written import digests, table

from medad_serve.data import read_table
from medad_serve.data.phantoms import write_chest
from medad_serve.data.phantoms.chest_body import Chest, Frame, heart, lungs
from medad_serve.data.phantoms.chest_film import CURVES, Curve, chest_film, draw_shape
from medad_serve.data.phantoms.chest_opacities import KINDS, draw_opacity
from medad_serve.data.phantoms.chest_storage import STORAGES, Film, save_film
from medad_serve.io import decode
from medad_serve.prep import prepare
from medad_serve.spec import PrepSpec

HEALTHY = ABNORMAL = len(STORAGES)
NAMES = {"NORMAL": re.compile(r"IM-(\d{4})-0001"), "PNEUMONIA": re.compile(r"person(\d+)_(bacteria|virus)_\d+")}


def grey(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def shown(path):
    """What a viewer shows of a file, 0..1, by pydicom and OpenCV alone."""
    if path.suffix != ".dcm":
        return grey(path) / 255
    dataset = pydicom.dcmread(path)
    values = apply_voi_lut(dataset.pixel_array, dataset).astype(float)
    bits = dataset.VOILUTSequence[0].LUTDescriptor[2] if "VOILUTSequence" in dataset else dataset.BitsStored
    return abs((dataset.PhotometricInterpretation == "MONOCHROME1") - values / (2**bits - 1))


def way(path):
    """How a file stores its film."""
    if path.suffix != ".dcm":
        return (path.suffix,)
    d = pydicom.dcmread(path, stop_before_pixels=True)
    voi = "LUT" if "VOILUTSequence" in d else d.get("VOILUTFunction", "LINEAR") if "WindowCenter" in d else ""
    return d.Modality, d.BitsStored, d.PhotometricInterpretation, voi


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("phantoms") / "chest"
    write_chest(out, healthy=HEALTHY, abnormal=ABNORMAL, slices=1, seed=3)
    return out


def drawn(seed):
    rng = np.random.default_rng(seed)
    chest = Chest.draw(rng)
    return rng, Frame.of(chest, draw_shape(rng))


def test_files_lie_as_in_kermany_and_every_pneumonia_has_a_mask(folder):
    files = list(folder.glob("t*/*/*"))
    told = {row["file"]: row for row in table(folder / "opacities.csv")}
    assert Counter(p.parent.relative_to(folder).as_posix() for p in files) == {
        f"{role}/{name}": count for role, count in (("train", 12), ("test", 4)) for name in NAMES
    }
    for path in files:
        named = NAMES[path.parent.name].fullmatch(path.stem)
        assert named, path.name
        row = told.get(path.relative_to(folder).as_posix())
        mask = grey(folder / "masks" / f"{path.stem}.png")
        assert (row is not None) == (mask is not None) == (path.parent.name == "PNEUMONIA")
        if row is not None:
            assert row["kind"] == {"bacteria": "lobar", "virus": "patchy"}[named[2]]
            assert mask.shape == shown(path).shape
            assert set(np.unique(mask)) <= {0, 255}
            assert (mask > 0).any() == (float(row["lung_share"]) > 0)


def test_the_layout_reads_one_patient_a_film_with_the_roles_of_the_folders(folder):
    samples = read_table(f"folders:{folder}").samples
    assert Counter((s.role, s.label) for s in samples) == {
        ("train", 0): 12,
        ("train", 1): 12,
        ("test", 0): 4,
        ("test", 1): 4,
    }
    assert len({s.patient for s in samples}) == len(samples)


def test_several_films_of_a_patient_are_one_patient(tmp_path):
    write_chest(tmp_path / "out", healthy=2, abnormal=2, slices=3, seed=1)
    samples = read_table(f"folders:{tmp_path / 'out'}").samples
    assert sorted(Counter(s.patient for s in samples).values()) == [3, 3, 3, 3]


def test_the_way_of_storing_tells_nothing_of_the_label(folder):
    ways = [Counter(way(p) for p in folder.glob(f"t*/{name}/*")) for name in NAMES]
    assert ways[0] == ways[1]
    assert ways[0][(".png",)] == ways[0][(".jpeg",)] == HEALTHY / 4
    dicom = [w for w in ways[0] if len(w) > 1]
    assert {w[2] for w in dicom} == {"MONOCHROME1", "MONOCHROME2"}
    assert {w[3] for w in dicom} == {"LUT", "LINEAR", "SIGMOID", ""}
    assert {w[1] for w in dicom} == {10, 12, 14, 16}


def test_dicom_films_are_complete_and_name_nobody(folder):
    datasets = [pydicom.dcmread(p) for p in folder.rglob("*.dcm")]
    assert len({d.SOPInstanceUID for d in datasets}) == len(datasets) == HEALTHY
    for d in datasets:
        assert (
            d.SOPClassUID.name.split(" Image")[0] == {"CR": "Computed Radiography", "DX": "Digital X-Ray"}[d.Modality]
        )
        assert (d.BodyPartExamined, d.ViewPosition) == ("CHEST", "PA")
        assert re.fullmatch(r"PHANTOM-\d{4}", str(d.PatientName))
        assert d.PatientID == d.PatientName
        assert d.PatientBirthDate == d.StudyDate == ""
        assert 0.5 < d.ImagerPixelSpacing[0] * min(d.pixel_array.shape) / 270 < 1.5  # a chest is about 27 cm wide


@pytest.mark.parametrize("storage", STORAGES, ids=lambda s: "-".join(map(str, vars(s).values())))
def test_every_storage_shows_the_same_picture(tmp_path, storage):
    rng, frame = drawn(7)
    level, _ = chest_film(rng, frame)
    curve = Curve(storage.voi or "SIGMOID", 0.75, 1.3)
    path = tmp_path / f"film{storage.suffix}"
    save_film(path, Film(level, curve, "PHANTOM-0001", 0, 0.9), storage, seed=0)
    away = np.abs(shown(path) - curve.show(level))
    assert away.mean() < (0.01 if storage.suffix == ".jpeg" else 0.002)
    assert np.percentile(away, 99.9) < (0.04 if storage.suffix == ".jpeg" else 0.006)
    # And so does what a model is given.
    prepared = prepare(decode(path), PrepSpec(window="file", size=level.shape)).tensor[0, 0]
    np.testing.assert_allclose(prepared, shown(path), atol=0.002)


def test_lungs_are_dark_and_the_heart_lies_on_the_patients_left():
    for seed in range(8):
        rng, frame = drawn(seed)
        level, mask = chest_film(rng, frame)
        assert not mask.any()
        air, muscle = lungs(frame), heart(frame)
        spine = (np.abs(frame.u) < 0.04) & (np.abs(frame.v) < 0.4)
        outside = (np.abs(frame.u) > 1.02) & (frame.v > 0.3)
        belly = (frame.v > max(frame.chest.domes) + 0.3) & (np.abs(frame.u) < 0.5)
        means = [np.median(level[where]) for where in (outside, (air > 0.9) & (muscle < 0.1), muscle > 0.9, spine)]
        assert np.nanmin(np.diff(means)) > 0.05, means
        assert not belly.any() or np.median(level[belly]) > means[1] + 0.3
        assert (muscle * (frame.u > 0)).sum() > 1.4 * (muscle * (frame.u < 0)).sum()
        assert 0.12 < (air > 0.5).mean() < 0.4


@pytest.mark.parametrize("kind", KINDS)
def test_opacities_whiten_the_lungs_where_the_mask_marks(kind):
    for seed in range(5):
        rng, frame = drawn(seed)
        what = draw_opacity(rng, frame, kind, 0.8)
        without, _ = chest_film(np.random.default_rng(seed), frame)
        level, mask = chest_film(np.random.default_rng(seed), frame, what)
        change = cv2.GaussianBlur(level - without, (0, 0), 1.5)
        air = lungs(frame)
        assert 0.01 < mask.sum() / (air > 0.5).sum() < 0.6
        assert (air[mask] > 0.1).all()
        assert change[mask].mean() > 0.15
        assert np.abs(change[~mask]).mean() < 0.1 * change[mask].mean()
        if kind == "lobar":
            assert len(np.unique(np.sign(frame.u[mask]))) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_effect_grows_with_the_grade(kind):
    effects = np.zeros(5)
    for seed in range(4):
        _, frame = drawn(seed)
        without, _ = chest_film(np.random.default_rng(seed), frame)
        for place, grade in enumerate(np.linspace(0, 1, 5)):
            what = draw_opacity(np.random.default_rng(seed), frame, kind, grade)
            effects[place] += (chest_film(np.random.default_rng(seed), frame, what)[0] - without).mean()
    assert effects[0] > 0
    assert (np.diff(effects) > 0.2 * effects[0]).all()


def test_films_differ_in_size_and_ratio(folder):
    ratios, sides = zip(*((w / h, min(h, w)) for h, w in (shown(p).shape for p in folder.glob("t*/*/*"))), strict=True)
    assert min(ratios) < 0.95
    assert max(ratios) > 1.25
    assert 220 < min(sides) < 260 < 290 < max(sides) <= 320


def test_brightness_alone_does_not_tell_pneumonia():
    labels, films = [], []
    for seed in range(80):
        rng, frame = drawn(seed)
        what = draw_opacity(rng, frame, KINDS[seed // 2 % 2], rng.random()) if seed % 2 else None
        films.append(Curve.draw(rng, CURVES[seed % 3]).show(chest_film(rng, frame, what)[0]))
        labels.append(seed % 2)
    for measure in (np.mean, np.median, np.std, lambda film: np.percentile(film, 99)):
        assert abs(roc_auc_score(labels, [measure(film) for film in films]) - 0.5) < 0.2


def test_same_seed_same_bytes_and_another_seed_others(tmp_path, folder):
    write_chest(tmp_path / "same", healthy=HEALTHY, abnormal=ABNORMAL, slices=1, seed=3)
    write_chest(tmp_path / "other", healthy=3, abnormal=3, slices=1, seed=4)
    assert digests(tmp_path / "same") == digests(folder)
    assert not set(digests(tmp_path / "other").values()) & set(digests(folder).values())
