"""Health-data maps: lines where the design has them, graded faults where the masks say, no shortcut by brightness."""

from collections import Counter

import cv2
import numpy as np
import pytest
from scipy.signal import find_peaks
from scipy.special import polygamma
from sklearn.metrics import roc_auc_score
from written import digests, table

from medad_serve.data import read_table
from medad_serve.data.phantoms import write_hdmap
from medad_serve.data.phantoms.hdmap_faults import KINDS, Fault, faulty
from medad_serve.data.phantoms.hdmap_machine import SHOWN_DB, Gearbox, Machine, Run, acquire, levels

HEALTHY, ABNORMAL, SLICES = 9, 8, 2
GREY_PER_DB = 255 / (SHOWN_DB[1] - SHOWN_DB[0])


def grey(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("phantoms") / "hdmap"
    write_hdmap(out, healthy=HEALTHY, abnormal=ABNORMAL, slices=SLICES, seed=3)
    return out


@pytest.fixture(scope="module")
def design():
    return Gearbox.draw(np.random.default_rng([3, 2]))


def drawn(design, seed):
    rng = np.random.default_rng(seed)
    return rng, Machine.draw(rng, design), Run.draw(rng, design)


def test_files_lie_as_in_mvtec(folder):
    files = Counter(p.parent.relative_to(folder).as_posix() for p in folder.rglob("*.png"))
    assert files == {"train/good": 14, "test/good": 4, "test/fault": 16, "ground_truth/fault": 16}
    machines = {p.parent: {f.name.split("-")[0] for f in p.parent.iterdir()} for p in folder.glob("t*/*/*.png")}
    assert sum(map(len, machines.values())) == len(set.union(*machines.values())) == HEALTHY + ABNORMAL


def test_the_layout_reads_roles_masks_and_severities(folder):
    samples = read_table(f"mvtec:{folder}", {"patient": r"(\d+)-"}).samples
    assert len({s.patient for s in samples}) == HEALTHY + ABNORMAL
    told = {row["path"]: float(row["severity"]) for row in table(folder / "severity.csv")}
    for sample in samples:
        assert sample.label == (sample.kind == "fault") == (sample.mask is not None)
        assert sample.severity == told.get(sample.path.relative_to(folder).as_posix())
        assert sample.role == "test" if sample.label else sample.role in ("train", "test")


def test_maps_are_8_bit_and_masks_black_and_white(folder):
    for path in folder.glob("t*/*/*.png"):
        image = grey(path)
        assert (image.shape, image.dtype) == ((256, 256), np.uint8)
        assert np.percentile(image, 99.5) > 130
        assert (image == 255).mean() < 0.01
    for path in (folder / "ground_truth" / "fault").iterdir():
        mask = grey(path)
        assert set(np.unique(mask)) == {0, 255}
        assert 0.001 < (mask > 0).mean() < 0.25


def test_every_kind_is_graded_over_the_whole_range(tmp_path):
    write_hdmap(tmp_path / "out", healthy=1, abnormal=16, slices=1, seed=0)
    kinds = {row["path"]: row["kind"] for row in table(tmp_path / "out" / "faults.csv")}
    quarters = {kind: [] for kind in KINDS}
    for row in table(tmp_path / "out" / "severity.csv"):
        quarters[kinds[row["path"]]].append(int(float(row["severity"]) // 2.5))
    assert {kind: sorted(found) for kind, found in quarters.items()} == {kind: [0, 1, 2, 3] for kind in KINDS}


def test_lines_lie_at_the_orders_of_the_design(folder, design):
    profile = np.mean([grey(p).mean(axis=1) for p in (folder / "train" / "good").iterdir()], axis=0)
    peaks, _ = find_peaks(profile, prominence=4)
    shaft, mesh = [1, 3], [design.mesh * n for n in (1, 2, 3)]
    sidebands = [mesh[0] - design.carrier, mesh[0] + design.carrier]
    for order in [*shaft, *mesh, *sidebands]:
        assert np.abs(peaks - (255 - 4 * order)).min() <= 1.5, order


def test_points_spread_as_means_of_eight_periodograms_do():
    level = np.full((256, 256), 11, np.float32)
    image = acquire(np.random.default_rng(0), level).astype(float)
    assert image.std() / GREY_PER_DB == pytest.approx(10 / np.log(10) * np.sqrt(polygamma(1, 8)), rel=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_the_effect_grows_with_severity_from_nothing(design, kind):
    for seed in range(4):
        _, machine, run = drawn(design, seed)
        healthy = levels(design, machine, run)
        faults = [Fault.draw(np.random.default_rng(seed), kind, severity) for severity in np.linspace(0, 10, 11)]
        effects = [np.square(faulty(design, machine, run, fault)[0] - healthy).mean() for fault in faults]
        assert effects[0] == 0
        assert not faulty(design, machine, run, faults[0])[1].any()
        assert (np.diff(effects) > 0).all()


@pytest.mark.parametrize(("kind", "sign"), [("energy", 1), ("sidebands", 1), ("loss", -1), ("shift", 0)])
def test_faults_change_what_the_mask_marks_and_little_else(design, kind, sign):
    for seed in range(6):
        rng, machine, run = drawn(design, seed)
        level, mask = faulty(design, machine, run, Fault.draw(rng, kind, 8.0))
        change = level - levels(design, machine, run)
        assert np.abs(change[~mask]).mean() < 0.1 * np.abs(change[mask]).mean()
        if sign:
            assert (np.sign(change[mask & (np.abs(change) > 0.1)]) == sign).all()
        assert np.abs(change).max() > 3


@pytest.mark.parametrize("kind", KINDS)
def test_weak_faults_change_less_than_points_spread(design, kind):
    for seed in range(6):
        rng, machine, run = drawn(design, seed)
        level, mask = faulty(design, machine, run, Fault.draw(rng, kind, 0.5))
        change = level - levels(design, machine, run)
        assert 0 < np.sqrt(np.square(change[mask]).mean()) < 1.5
        assert mask.any()


def test_brightness_alone_does_not_tell_a_fault(design):
    images, labels = [], []
    for seed in range(120):
        rng, machine, run = drawn(design, seed)
        kind = KINDS[seed // 2 % 4]
        fault = Fault.draw(rng, kind, rng.uniform(0, 10))
        level = faulty(design, machine, run, fault)[0] if seed % 2 else levels(design, machine, run)
        images.append(acquire(rng, level))
        labels.append(seed % 2)
    for measure in (np.mean, np.median, np.std, lambda image: np.percentile(image, 99)):
        assert abs(roc_auc_score(labels, [measure(image) for image in images]) - 0.5) < 0.18


def test_same_seed_same_bytes_and_another_seed_another_design(tmp_path, folder):
    write_hdmap(tmp_path / "same", healthy=HEALTHY, abnormal=ABNORMAL, slices=SLICES, seed=3)
    write_hdmap(tmp_path / "other", healthy=2, abnormal=2, slices=1, seed=4)
    assert digests(tmp_path / "same") == digests(folder)
    images = [
        set(digests(f / "train").values()) | set(digests(f / "test").values()) for f in (folder, tmp_path / "other")
    ]
    assert not images[0] & images[1]
    assert Gearbox.draw(np.random.default_rng([4, 2])).mesh != Gearbox.draw(np.random.default_rng([3, 2])).mesh


def test_healthy_maps_alone_are_written_without_a_folder_of_faults(tmp_path):
    write_hdmap(tmp_path / "out", healthy=3, abnormal=0, slices=1)
    assert not (tmp_path / "out" / "test" / "fault").exists()
    assert len(read_table(f"mvtec:{tmp_path / 'out'}").samples) == 3
