"""Phantoms of retinal OCT: layers as anatomy has them, lesions where the truth says, no shortcut by brightness."""

import re
from collections import Counter

import cv2
import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import roc_auc_score
from written import digests, table

from medad_serve.data import read_table
from medad_serve.data.phantoms import write_oct
from medad_serve.data.phantoms.oct_eye import HEIGHT, LAYERS, WIDTH, Eye
from medad_serve.data.phantoms.oct_lesions import DISEASES
from medad_serve.data.phantoms.oct_scan import oct_scan, surfaces

HEALTHY, ABNORMAL, SLICES = 5, 6, 2
NAME = re.compile(r"(NORMAL|CNV|DRUSEN|DME)-(\d{7})-(\d+)\.jpeg")


def grey(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def between(image, top, bottom):
    """Mean of each column's pixels from row ``top`` to ``bottom``, nan where there are none."""
    rows = np.arange(len(image))[:, None]
    inside = (rows >= np.ceil(top)) & (rows <= np.floor(bottom) - 1)
    counts = inside.sum(0)
    return np.where(counts > 0, (image * inside).sum(0) / np.maximum(counts, 1), np.nan)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("phantoms") / "oct"
    write_oct(out, healthy=HEALTHY, abnormal=ABNORMAL, slices=SLICES, seed=3)
    return out


@pytest.fixture(scope="module")
def cohort():
    """30 eyes, each scanned healthy and diseased: (kind, eye, surfaces, image, mask)."""
    rng = np.random.default_rng(11)
    drawn = []
    for kind in 10 * list(DISEASES):
        eye = Eye.draw(rng)
        disease = DISEASES[kind](rng, eye)
        drawn.append(("", eye, surfaces(eye), *oct_scan(rng, eye)))
        drawn.append((kind, eye, surfaces(eye, disease), *oct_scan(rng, eye, disease)))
    return drawn


def test_files_lie_as_in_kermany(folder):
    files = [p.relative_to(folder).parts for p in folder.rglob("*.jpeg")]
    assert len(files) == (HEALTHY + ABNORMAL) * SLICES
    roles = {}
    for role, kind, name in files:
        named = NAME.fullmatch(name)
        assert named
        assert named[1] == kind
        roles.setdefault(named[2], set()).add(role)
    assert len(roles) == HEALTHY + ABNORMAL
    assert all(len(role) == 1 for role in roles.values())
    assert Counter(parts[:2] for parts in files) == {
        ("train", "NORMAL"): 4 * SLICES,
        ("test", "NORMAL"): 1 * SLICES,
        **{(role, kind): SLICES for role in ("train", "test") for kind in DISEASES},
    }
    assert {p.name for p in folder.iterdir()} == {"train", "test", "masks", "lesions.csv"}


def test_the_layout_reads_them(folder):
    samples = read_table(f"folders:{folder}").samples
    assert Counter((s.role, s.kind) for s in samples if s.label) == {
        (role, kind): SLICES for role in ("train", "test") for kind in DISEASES
    }
    assert len({s.patient for s in samples}) == HEALTHY + ABNORMAL


def test_scans_are_8_bit_grey(folder):
    for path in folder.rglob("*.jpeg"):
        image = grey(path)
        assert (image.shape, image.dtype) == ((496, 512), np.uint8)
        assert np.percentile(image, 99.5) > 150


def test_every_diseased_scan_has_a_mask_and_its_boxes_are_the_tables(folder):
    rows = table(folder / "lesions.csv")
    diseased = [p for p in folder.rglob("*.jpeg") if p.parent.name != "NORMAL"]
    assert {p.stem for p in (folder / "masks").iterdir()} == {p.stem for p in diseased}
    for path in diseased:
        mask = grey(folder / "masks" / f"{path.stem}.png")
        assert mask.shape == (496, 512)
        assert set(np.unique(mask)) == {0, 255}
        parts, _ = ndimage.label(mask, structure=np.ones((3, 3)))
        expected = set()
        for number, (down, across) in enumerate(ndimage.find_objects(parts), 1):
            if (parts == number).sum() >= 6:
                middle = ((s.start + s.stop - 1) / 2 for s in (down, across))
                expected.add((*middle, down.stop - down.start, across.stop - across.start))
        told = [r for r in rows if r["file"] == path.relative_to(folder).as_posix()]
        assert {tuple(float(r[k]) for k in ("row", "col", "height", "width")) for r in told} == expected
        assert {r["kind"] for r in told} == {path.parent.name}


def test_layers_follow_each_other_in_the_order_of_their_reflectivity():
    rng = np.random.default_rng(4)
    for _ in range(6):
        eye = Eye.draw(rng)
        image, mask = oct_scan(rng, eye)
        assert not mask.any()
        tops = surfaces(eye)
        bottoms = dict(zip(LAYERS, [tops[n] for n in (*LAYERS[1:], "bruch")], strict=True))
        # Away from the pit, where every layer is there.
        away = np.abs(np.arange(WIDTH) - eye.fovea) > 90
        mean = {n: np.nanmean(between(image, tops[n] + 0.5, bottoms[n] + 0.5)[away]) for n in LAYERS}
        assert min(mean["nfl"], mean["ez"], mean["rpe"]) > max(mean[n] for n in ("gcl", "ipl", "inl", "opl", "onl"))
        assert mean["gcl"] > mean["inl"] < mean["opl"] > mean["onl"]
        assert mean["ez"] > mean["iz"] < mean["rpe"]
        vitreous = np.nanmean(between(image, tops["nfl"] - 80, tops["nfl"] - 45))
        choroid = np.nanmean(between(image, tops["bruch"] + 4, tops["bruch"] + 20))
        deep = np.nanmean(between(image, tops["bruch"] + 150, np.full(WIDTH, HEIGHT)))
        assert vitreous < mean["onl"] < choroid < mean["rpe"]
        assert deep < 0.75 * choroid


def test_the_retina_is_as_thick_as_in_people_and_thinnest_in_the_pit():
    rng = np.random.default_rng(8)
    centre, rim = [], []
    for _ in range(60):
        eye = Eye.draw(rng)
        tops = surfaces(eye)
        um = (tops["bruch"] - tops["nfl"]) * 3.87
        assert (np.diff([tops[n] for n in (*LAYERS, "bruch")], axis=0) > -1e-3).all()
        fovea = round(eye.fovea)
        assert abs(int(um[fovea - 100 : fovea + 100].argmin()) - 100) < 20
        if eye.pit > 0.9:
            centre.append(um[fovea])
            rim.append(um[[fovea - 85, fovea + 85]].mean())
    # Spectralis, healthy adults: central minimum about 225 um, inner ring about 340 um.
    assert np.mean(centre) == pytest.approx(225, abs=30)
    assert np.mean(rim) == pytest.approx(340, abs=30)


def test_drusen_and_membranes_lift_the_pigment_epithelium_and_oedema_does_not(cohort):
    ratio = {}
    for kind, eye, _, image, _ in cohort:
        # Bruch's membrane is where it was; the bright band that lay upon it is gone where the epithelium is lifted.
        band = ndimage.uniform_filter1d(between(image, eye.bruch() - 6, eye.bruch() - 1), 5)
        ratio.setdefault(kind, []).append(np.percentile(band, 3) / np.median(band))
    for kind, separates in (("DRUSEN", True), ("CNV", True), ("DME", False)):
        auroc = roc_auc_score([0] * len(ratio[""]) + [1] * len(ratio[kind]), -np.array(ratio[""] + ratio[kind]))
        assert (auroc > 0.95) if separates else (auroc < 0.8), kind


def test_oedema_thickens_the_retina_around_the_fovea(cohort):
    thick = {}
    for kind, eye, tops, _, _ in cohort:
        fovea = round(eye.fovea)
        thick.setdefault(kind, []).append((tops["bruch"] - tops["nfl"])[fovea - 30 : fovea + 30].mean())
    assert np.median(thick["DME"]) > np.median(thick[""]) + 10
    assert roc_auc_score([0] * len(thick[""]) + [1] * len(thick["DME"]), thick[""] + thick["DME"]) > 0.85


def test_masks_lie_within_the_retina_and_cysts_are_dark(cohort):
    rows = np.arange(HEIGHT)[:, None]
    for kind, _, tops, image, mask in cohort:
        assert mask.any() == bool(kind)
        if not kind:
            continue
        within = (rows >= tops["nfl"] - 2) & (rows <= tops["bruch"] + 2)
        assert (mask & within).sum() > 0.99 * mask.sum()
        assert 60 < mask.sum() < 0.08 * mask.size
        if kind == "DME":
            smooth = cv2.GaussianBlur(image, (0, 0), 1.5)
            assert np.median(smooth[mask]) < 0.75 * np.median(smooth[within & ~mask])


def test_brightness_alone_does_not_tell_disease_and_differs_more_between_patients(cohort):
    labels = np.array([bool(kind) for kind, *_ in cohort])
    for measure in (np.mean, np.median, lambda image: np.percentile(image, 99), np.std):
        values = np.array([measure(image) for _, _, _, image, _ in cohort])
        assert abs(roc_auc_score(labels, values) - 0.5) < 0.15
        apart = abs(values[labels].mean() - values[~labels].mean())
        assert apart < values[~labels].std()


def test_scans_of_a_patient_are_alike_and_not_the_same(folder):
    first, second = (grey(p).astype(float) for p in sorted((folder / "train" / "NORMAL").iterdir())[:2])
    others = [grey(p).astype(float) for p in sorted((folder / "train" / "NORMAL").iterdir())[2::2]]
    assert (first != second).mean() > 0.2
    assert abs(first.mean() - second.mean()) < np.mean([abs(first.mean() - other.mean()) for other in others])


def test_same_seed_same_bytes_and_another_seed_others(tmp_path, folder):
    write_oct(tmp_path / "same", healthy=HEALTHY, abnormal=ABNORMAL, slices=SLICES, seed=3)
    write_oct(tmp_path / "other", healthy=1, abnormal=3, slices=1, seed=4)
    assert digests(tmp_path / "same") == digests(folder)
    assert not set(digests(tmp_path / "other").values()) & set(digests(folder).values())
