"""Phantoms of vertebrae: anatomy where it belongs, fractures that lose what they say, no shortcut by brightness."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import roc_auc_score
from written import digests, table

from medad_serve.data import read_table
from medad_serve.data.phantoms import write_vertebrae
from medad_serve.data.phantoms.vertebra_shape import KINDS, LEVELS, draw_fracture
from medad_serve.data.phantoms.vertebra_volume import Patient, vertebra_volume
from medad_serve.errors import MedadError

HEALTHY, ABNORMAL, SLICES, SIZE = 5, 6, 2, 48


def heights(body, mm):
    """Height in mm of the front, middle and back of a body, along its midline (5 mm wide)."""
    columns = np.nonzero(body.any((0, 1)))[0]
    middle, half = round(columns.mean()), max(1, round(2.5 / mm))
    profile = body[:, :, middle - half : middle + half + 1].sum(0).mean(1) * mm
    rows = np.nonzero(body.any((0, 2)))[0]
    at = [rows[0] + share * (rows[-1] - rows[0]) for share in (0.12, 0.5, 0.85)]
    return np.interp(at, np.arange(len(profile)), profile)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("phantoms") / "vertebrae"
    write_vertebrae(out, healthy=HEALTHY, abnormal=ABNORMAL, slices=SLICES, seed=3, size=SIZE)
    return out


@pytest.fixture(scope="module")
def cohort():
    """24 vertebrae, each sound and fractured: (kind, drawn)."""
    rng = np.random.default_rng(7)
    drawn = []
    for number, kind in enumerate(8 * KINDS):
        patient, fracture = Patient.draw(rng), draw_fracture(rng, kind)
        for broken in (None, fracture):
            volume = vertebra_volume(rng, patient, number % len(LEVELS), broken, size=SIZE)
            drawn.append((kind if broken else "", volume))
    return drawn


@pytest.fixture(scope="module")
def sound():
    """A sound vertebra in full size, of little noise."""
    patient = replace(Patient.draw(np.random.default_rng(1)), noise=0.005, trabeculae=0.01, cancellous=0.5)
    return vertebra_volume(np.random.default_rng(2), patient, LEVELS.index("L3"))


def test_files_lie_as_the_layout_reads_them(folder):
    names = {p.name for p in folder.iterdir() if p.is_file()}
    volumes = {n for n in names if n.endswith(".npy")}
    assert len(volumes) == (HEALTHY + ABNORMAL) * SLICES
    assert names - volumes == {"labels.csv", "fractures.csv", "test.txt"}
    found = read_table(f"volumes:{folder}")
    assert {s.path.name for s in found.samples} == volumes
    patients = found.patients()
    assert Counter(patients.values()) == {0: HEALTHY, 1: ABNORMAL}
    assert all((s.mask is not None) == bool(s.label) for s in found.samples)


def test_the_test_list_holds_half_of_the_abnormal_and_a_fifth_of_the_healthy(folder):
    found = read_table(f"volumes:{folder}")
    tests = (folder / "test.txt").read_text().split()
    assert len(tests) == len(set(tests))
    labels = found.patients()
    assert Counter(labels[patient] for patient in tests) == {0: 1, 1: ABNORMAL // 2}
    assert {p for p, role in found.given_roles().items() if role == "test"} == set(tests)


def test_volumes_are_float32_of_a_window(folder):
    for path in folder.glob("*.npy"):
        volume = np.load(path)
        assert (volume.shape, volume.dtype) == ((SIZE, SIZE, SIZE), np.float32)
        assert volume.min() >= 0
        assert 0.7 < volume.max() <= 1
        assert 0.2 < np.median(volume) < 0.4


def test_the_default_size_is_that_of_a_crop(sound):
    assert sound.values.shape == sound.body.shape == sound.changed.shape == (128, 128, 128)


def test_a_table_of_fractures_tells_what_the_labels_tell(folder):
    labels = {r["file"]: r for r in table(folder / "labels.csv")}
    fractures = {r["file"]: r for r in table(folder / "fractures.csv")}
    assert {name for name, row in labels.items() if row["label"] == "1"} == set(fractures)
    assert {p.name for p in (folder / "masks").iterdir()} == set(fractures)
    for name, row in labels.items():
        known = fractures.get(name, {"kind": "", "height_loss": "0.000"})
        assert (row["kind"], row["severity"]) == (known["kind"], known["height_loss"])
    assert {row["kind"] for row in fractures.values()} == set(KINDS)
    assert all(0.2 <= float(row["height_loss"]) <= 0.6 for row in fractures.values())


def test_tissues_lie_in_their_ranges(sound):
    inner = ndimage.binary_erosion(sound.body, iterations=4)
    shell = sound.body & ~ndimage.binary_erosion(sound.body)
    assert np.median(sound.values[inner]) == pytest.approx(0.5, abs=0.02)
    assert np.percentile(sound.values[shell], 90) > 0.75
    assert np.percentile(sound.values, 99.5) > 0.8
    assert (sound.values < 0.4).mean() > 0.85
    assert not sound.changed.any()


def test_the_body_is_in_front_the_arch_behind_and_the_canal_between_is_free_of_bone(sound):
    rows, columns = (np.nonzero(sound.body.any(axis))[0] for axis in ((0, 2), (0, 1)))
    slices = np.nonzero(sound.body.any((1, 2)))[0]
    # L3 of adults: about 46 mm wide, 34 mm deep, 28 mm high.
    assert columns[-1] - columns[0] + 1 == pytest.approx(46, abs=7)
    assert rows[-1] - rows[0] + 1 == pytest.approx(34, abs=6)
    assert slices[-1] - slices[0] + 1 == pytest.approx(29, abs=5)
    assert rows.mean() < 50
    middle, level = round(columns.mean()), round(slices.mean())
    canal = sound.values[level - 6 : level + 7, rows[-1] + 6 : rows[-1] + 14, middle - 4 : middle + 5]
    assert canal.mean() == pytest.approx(0.325, abs=0.02)
    arch = sound.values[level - 12 : level + 4, rows[-1] + 5 :, :] > 0.6
    parts, count = ndimage.label(arch)
    largest = ndimage.sum_labels(arch, parts, range(1, count + 1)).max()
    assert largest > 2500  # voxels of bone that hang together: laminae with their processes
    spinous = sound.values[level - 12 : level + 4, rows[-1] + 30, middle - 3 : middle + 4]
    assert spinous.max() > 0.7


def test_neighbours_are_partly_seen_across_discs(sound):
    slices = np.nonzero(sound.body.any((1, 2)))[0]
    rows = np.nonzero(sound.body.any((0, 2)))[0]
    row, column = round(rows.mean()), round(np.nonzero(sound.body.any((0, 1)))[0].mean())
    along = ndimage.gaussian_filter1d(sound.values[:, row - 4 : row + 5, column - 4 : column + 5].mean((1, 2)), 1.5)
    for outward in (along[slices[-1] + 1 :], along[slices[0] - 1 :: -1]):
        disc = outward[3:7].mean()
        assert disc == pytest.approx(0.345, abs=0.03)
        assert outward[8:35].max() > disc + 0.12


@pytest.mark.parametrize("kind", KINDS)
def test_a_fracture_loses_the_height_it_says_where_its_kind_does(kind):
    patient = Patient.draw(np.random.default_rng(5))
    for seed in range(2):
        fracture = draw_fracture(np.random.default_rng(seed), kind)
        sound, broken = (vertebra_volume(np.random.default_rng(seed), patient, 3, f, size=96) for f in (None, fracture))
        front, middle, back = 1 - heights(broken.body, 128 / 96) / heights(sound.body, 128 / 96)
        worst, kept = {"wedge": (front, back), "biconcave": (middle, front), "crush": (front, None)}[kind]
        assert worst == pytest.approx(fracture.loss, abs=0.07)
        if kept is not None:
            assert kept < 0.25 * fracture.loss + 0.06
        else:
            assert min(front, middle, back) > 0.75 * fracture.loss


@pytest.mark.parametrize("kind", KINDS)
def test_the_mask_covers_what_the_body_lost_and_denser_bone(kind):
    patient = replace(Patient.draw(np.random.default_rng(6)), noise=0.003, trabeculae=0.003)
    fracture = replace(draw_fracture(np.random.default_rng(6), kind), density=0.2, loss=0.4)
    sound, broken = (vertebra_volume(np.random.default_rng(9), patient, 3, f, size=96) for f in (None, fracture))
    lost = sound.body & ~broken.body
    assert (broken.changed & lost).sum() == lost.sum()
    denser = broken.changed & ndimage.binary_erosion(broken.body, iterations=2)
    plain = ~broken.changed & ndimage.binary_erosion(broken.body, iterations=2)
    assert broken.values[denser].mean() > broken.values[plain].mean() + 0.08
    assert 0.1 < broken.changed.sum() / sound.body.sum() < 1


def test_the_vertebra_above_a_wedge_follows_it_down_and_forward():
    patient = replace(Patient.draw(np.random.default_rng(6)), noise=0.002)
    fracture = replace(draw_fracture(np.random.default_rng(6), "wedge"), loss=0.6)
    tops = []
    for broken in (None, fracture):
        drawn = vertebra_volume(np.random.default_rng(9), patient, 3, broken, size=96)
        rows = np.nonzero(drawn.body.any((0, 2)))[0]
        column = round(np.nonzero(drawn.body.any((0, 1)))[0].mean())
        gaps = []
        for row in (rows[0] + 5, rows[-1] - 5):
            along = drawn.values[:, row, column - 2 : column + 3].mean(1)
            plate = np.nonzero(drawn.body[:, row, column])[0][-1]
            gaps.append(plate + 3 + int(np.argmax(along[plate + 3 : plate + 16] > 0.6)))
        tops.append(gaps)
    (front, back), (front_now, back_now) = tops
    assert front_now < front - 4  # voxels of 1.3 mm
    assert front - front_now > back - back_now + 3


def test_brightness_alone_does_not_tell_a_fracture_and_height_does(cohort):
    labels = [bool(kind) for kind, _ in cohort]
    for measure in (np.mean, np.median, np.std, lambda v: np.percentile(v, 90), lambda v: np.percentile(v, 99)):
        assert abs(roc_auc_score(labels, [measure(d.values) for _, d in cohort]) - 0.5) < 0.15
    lost = []
    for _, drawn in cohort:
        wide = np.ptp(np.nonzero(drawn.body.any((0, 1)))[0]) + 1
        lost.append(-heights(drawn.body, 128 / SIZE).min() / wide)
    assert roc_auc_score(labels, lost) > 0.97


def test_same_seed_same_bytes_and_another_seed_others(tmp_path, folder):
    write_vertebrae(tmp_path / "same", healthy=HEALTHY, abnormal=ABNORMAL, slices=SLICES, seed=3, size=SIZE)
    write_vertebrae(tmp_path / "other", healthy=2, abnormal=1, slices=1, seed=4, size=SIZE)
    assert digests(tmp_path / "same") == digests(folder)
    mine, others = (
        {digest for name, digest in digests(root).items() if name.endswith(".npy")}
        for root in (folder, tmp_path / "other")
    )
    assert not mine & others


def test_more_vertebrae_than_there_are_levels_are_refused(tmp_path):
    with pytest.raises(MedadError, match="at most 7"):
        write_vertebrae(tmp_path / "out", healthy=1, abnormal=0, slices=8)
    assert list(tmp_path.iterdir()) == []
