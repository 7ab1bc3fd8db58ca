"""A small real data set, run and artifact, made once a session by the product itself."""

from __future__ import annotations

import csv
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_aws import FakeAws, fake_aws
from hypothesis import HealthCheck, settings
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell without job control starts what runs in its background deaf to Ctrl-C, and tests that send it would wait.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# As the command line does: torch's OpenMP threads spin while they wait, and on a busy machine every small training
# step would then take three times as long. Read when torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# No example has a deadline: on a busy machine any may take long. Fixtures are made once a test, not once an example.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
settings.load_profile("any machine")

HEALTHY, ABNORMAL = 40, 8


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the user's cache out of the tests."""
    patch = pytest.MonkeyPatch()
    patch.setenv("MEDAD_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """``real_data(folder)``: where real images lie ($MEDAD_TEST_DATA, else beside the repository), or skip."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"

    def find(folder: str) -> Path:
        path = Path(os.environ.get("MEDAD_TEST_DATA", beside)) / folder
        if not path.is_dir():
            pytest.skip(f"real images {folder} are not there: name their folder in MEDAD_TEST_DATA")
        return path

    return find


def head_slice(seed: int, *, bleeding: bool = False, size: int = 128) -> np.ndarray:
    """Return a crude head in HU, (size, size) int16: a bright ring, a brain, and where asked a bright disc."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size] / size - 0.5
    radius = np.hypot(rows / rng.uniform(0.8, 1.0), columns / rng.uniform(0.7, 0.9))
    hu = np.full((size, size), -1000.0)
    hu[radius < 0.48] = 1000
    hu[radius < 0.44] = 32
    if bleeding:
        hu[np.hypot(rows - rng.uniform(-0.1, 0.1), columns - rng.uniform(-0.1, 0.1)) < 0.12] = 68
    inside = radius < 0.44
    hu[inside] += rng.normal(0, 3, int(inside.sum()))
    return hu.round().astype(np.int16)


def ct_dataset(hu: np.ndarray, patient: str = "P0", *, instance: int = 1, series: str = "S") -> FileDataset:
    """Wrap HU, (H, W) int16, as a CT Image Storage data set."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[patient, series, str(instance)])
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    ds.SeriesInstanceUID = generate_uid(entropy_srcs=[patient, series])
    ds.StudyInstanceUID = generate_uid(entropy_srcs=[patient])
    ds.Modality, ds.BodyPartExamined = "CT", "HEAD"
    ds.PatientName, ds.PatientID = f"Name^{patient}", patient
    ds.InstanceNumber = instance
    ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    ds.ImagePositionPatient = [0, 0, 5.0 * instance]
    ds.PixelSpacing = [1.0, 1.0]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = hu.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.RescaleSlope, ds.RescaleIntercept = 1, 0
    ds.PixelData = hu.astype("<i2").tobytes()
    return ds


@pytest.fixture(scope="session")
def make_slice() -> Callable[..., np.ndarray]:
    """The function that draws a head slice in HU."""
    return head_slice


@pytest.fixture(scope="session")
def make_ct() -> Callable[..., FileDataset]:
    """The function that wraps HU as a CT data set."""
    return ct_dataset


@pytest.fixture(scope="session")
def cq500(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set in the CQ500 layout: 40 healthy and 8 bleeding heads, two slices each."""
    root = tmp_path_factory.mktemp("data") / "cq500"
    reads = []
    for number in range(HEALTHY + ABNORMAL):
        bleeding = number >= HEALTHY
        series = root / f"CQ500CT{number} CQ500CT{number}" / "Unknown Study" / "CT Plain"
        series.mkdir(parents=True)
        for instance in range(2):
            hu = head_slice(number * 10 + instance, bleeding=bleeding)
            ct_dataset(hu, f"CQ500CT{number}", instance=instance + 1).save_as(series / f"CT{instance:06d}.dcm")
        reads.append([f"CQ500-CT-{number}", "B1", *[int(bleeding)] * 3])
    with (root / "reads.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["name", "Category", "R1:ICH", "R2:ICH", "R3:ICH"], *reads])
    return root


SMALL = (
    "train.max_epochs=3",
    "settings.hidden_dim=64",
    "calibration.policy=specificity=0.8",
    "calibration.method=held_out",
)


@pytest.fixture(scope="session")
def run_path(cq500: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on the small data set; do not change it."""
    from medad_serve.training.config import resolve
    from medad_serve.training.fit import fit
    from medad_serve.training.run import create_run

    run = create_run(resolve("ae", f"cq500:{cq500}", None, SMALL), tmp_path_factory.mktemp("runs"))
    fit(run, run.prepared())
    return run.path


@pytest.fixture(scope="session")
def artifact(run_path: Path) -> Path:
    """Its exported artifact with both runtimes; do not change it."""
    from medad_serve.evaluation import export_run
    from medad_serve.training.run import open_run

    return export_run(open_run(run_path), ["onnx", "torchscript"])


DRAEM = (
    "prep.size=[32,32]",
    "settings.reconstructive_width=4",
    "settings.discriminative_width=4",
    "settings.severity_widths=[4,4,4]",
    "settings.faults.patch_width_range=[4,12]",
    "settings.score_window=5",
    "train.max_epochs=2",
    "calibration.policy=specificity=0.8",
)


@pytest.fixture(scope="session")
def draem_quickstart(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of a small quickstart of ``draem`` and what it returned; do not change it."""
    from medad_serve.quickstart import FOLDER, Plan, quickstart

    runs = tmp_path_factory.mktemp("runs")
    summary = quickstart(runs, "draem", plan=Plan(healthy=45, abnormal=8, slices=1, overrides=DRAEM))
    return runs / FOLDER, summary


@pytest.fixture(scope="session")
def dicom_files(cq500: Path) -> list[Path]:
    """Every DICOM file of the small data set, healthy patients first."""
    return sorted(cq500.rglob("*.dcm"), key=lambda p: (int(p.parts[-4].split("CT")[-1]), p.name))


@pytest.fixture(scope="session")
def _aws_server() -> Iterator[FakeAws]:
    with fake_aws() as server:
        yield server


@pytest.fixture
def aws(_aws_server: FakeAws, monkeypatch: pytest.MonkeyPatch) -> FakeAws:
    """A local AWS, empty, that this process and its children talk to."""
    _aws_server.reset()
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in _aws_server.environment.items():
        monkeypatch.setenv(name, value)
    return _aws_server
