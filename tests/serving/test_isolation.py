"""Decoding in a process of its own: equal to decoding here, bounded in time and memory, gone with its worker."""

from __future__ import annotations

import gzip
import io
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import nibabel as nib
import numpy as np
import psutil
import pydicom
import pytest

from medad_serve.deadline import Deadline, Postponed
from medad_serve.errors import InputError
from medad_serve.io import DEFAULT_LIMITS, Limits, Pixels
from medad_serve.io.guarded import decoded
from medad_serve.serving import isolation
from medad_serve.serving.isolation import IsolatedDecoder
from medad_serve.serving.plain import is_plain, plain_members

TEST_FILES = Path(pydicom.__file__).parent / "data" / "test_files"
SUPPORT = Path(__file__).parents[1] / "support"


@pytest.fixture(scope="module")
def decoder() -> Iterator[IsolatedDecoder]:
    made = IsolatedDecoder(budget_s=60)
    yield made
    made.close()


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Iterator[IsolatedDecoder]:
    monkeypatch.setenv("PYTHONPATH", str(SUPPORT))
    made = IsolatedDecoder(budget_s=4, module="faulty_codec")
    yield made
    made.close()


@pytest.fixture(scope="module")
def png() -> bytes:
    return cv2.imencode(".png", np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8))[1].tobytes()


def _zip(*members: bytes, deflated: bool = False) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED) as archive:
        for index, member in enumerate(members):
            archive.writestr(str(index), member)
    return buffer.getvalue()


def _ct(make_ct: Any, make_slice: Any, seed: int) -> bytes:
    buffer = io.BytesIO()
    make_ct(make_slice(seed), instance=seed).save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _same(a: object, b: object) -> bool:
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b, equal_nan=True)
    if hasattr(a, "__dataclass_fields__"):
        return type(a) is type(b) and all(_same(getattr(a, f), getattr(b, f)) for f in a.__dataclass_fields__)
    if isinstance(a, InputError):
        return isinstance(b, InputError) and a.to_json() == b.to_json()
    return a == b


def test_every_kind_of_source_is_decoded_as_it_is_here(
    decoder: IsolatedDecoder, png: bytes, make_ct: Any, make_slice: Any, tmp_path: Path
) -> None:
    slices = tuple(_ct(make_ct, make_slice, seed) for seed in range(1, 4))
    volume = nib.Nifti1Image(np.random.default_rng(0).normal(size=(40, 120, 130)).astype(np.float32), np.eye(4))
    names = ("JPEG2000.dcm", "MR_small_RLE.dcm", "examples_ybr_color.dcm", "SC_rgb_rle_2frame.dcm")
    files = [(TEST_FILES / name).read_bytes() for name in names]
    (tmp_path / "a.png").write_bytes(png)
    scan_and_mask = _zip(
        nib.Nifti1Image(np.full((20, 20, 20), -50, np.int16), np.eye(4)).to_bytes(),
        nib.Nifti1Image(np.eye(20, dtype=np.uint8)[..., None].repeat(20, 2), np.eye(4)).to_bytes(),
    )
    large = io.BytesIO()  # more than the scratch region takes
    np.save(large, np.random.default_rng(1).normal(size=(6, 1024, 1024)).astype(np.float32))
    sources = [
        png,
        *files,
        tmp_path / "a.png",
        tmp_path / "none",
        _zip(*slices, png),
        gzip.compress(volume.to_bytes()),
        scan_and_mask,
        large.getvalue(),
        b"words",
        b"",
    ]
    for source, found in zip(sources, decoder(sources), strict=True):
        assert _same(decoded(source), found)
    assert not decoder.losses


def test_decoded_pixels_outlive_what_is_decoded_next(decoder: IsolatedDecoder, png: bytes) -> None:
    other = cv2.imencode(".png", np.zeros((64, 64), np.uint8))[1].tobytes()
    first, second = decoder([png, other])
    assert isinstance(first, Pixels)
    assert isinstance(second, Pixels)
    assert first.array.any()
    assert not second.array.any()
    first.array[:] = 7  # as any array of the worker's own
    assert not second.array.any()


def test_uncompressed_dicom_is_read_in_the_worker(make_ct: Any, make_slice: Any, monkeypatch: Any) -> None:
    plain = _ct(make_ct, make_slice, 1)
    monkeypatch.setattr(IsolatedDecoder, "_start", lambda self: None)  # there is no process at all
    decoder = IsolatedDecoder(budget_s=1)
    other = _ct(make_ct, make_slice, 2)
    sources = [plain, (plain, other), _zip(plain, other), _zip(plain, other, deflated=True)]
    for source, found in zip(sources, decoder(sources), strict=True):
        assert isinstance(found, Pixels)
        assert _same(found, decoded(source))
    for left in (_zip(plain), _zip(plain, b"words"), _zip(plain, other)[:-400], b"PK\x03\x04", b"PK\x03\x04" * 20):
        assert not plain_members(left, DEFAULT_LIMITS)


@pytest.mark.parametrize("cut", [100, 131, 200, 400, 1000])
def test_what_a_strict_walk_does_not_find_whole_is_not_read_in_the_worker(
    make_ct: Any, make_slice: Any, cut: int
) -> None:
    whole = _ct(make_ct, make_slice, 1)
    assert is_plain(whole)
    assert not is_plain(whole[:cut])
    assert not is_plain(whole[:-cut])
    assert not is_plain(whole + b"\0" * 70_000)


def test_only_plain_files_of_the_corpus_are_read_in_the_worker() -> None:
    plain = {p.name for p in TEST_FILES.rglob("*.dcm") if is_plain(p.read_bytes())}
    assert {"CT_small.dcm", "MR_small.dcm", "rtdose.dcm"} <= plain
    for name in plain:
        syntax = pydicom.dcmread(next(TEST_FILES.rglob(name)), stop_before_pixels=True).file_meta.TransferSyntaxUID
        assert syntax in (pydicom.uid.ExplicitVRLittleEndian, pydicom.uid.ImplicitVRLittleEndian)


def test_a_decoder_that_hangs_is_ended_and_its_neighbours_keep_their_time(faulty: IsolatedDecoder, png: bytes) -> None:
    list(faulty([png]))
    before, hung, after = faulty([png, b"hang", png])
    assert isinstance(before, Pixels)
    assert isinstance(hung, Postponed)
    assert hung.given_s == pytest.approx(2, abs=0.5)
    assert _same(after, decoded(png))
    assert faulty.losses == {"hung": 1}


def test_a_file_is_refused_for_good_once_it_had_the_whole_budget(faulty: IsolatedDecoder, png: bytes) -> None:
    [hung] = faulty([b"hang"])
    assert isinstance(hung, InputError)
    assert (hung.code, "takes more than 4 s" in hung.message) == (413, True)


def test_the_end_of_a_batch_cuts_a_file_short_that_may_be_sent_again(faulty: IsolatedDecoder, png: bytes) -> None:
    list(faulty([png]))
    cut, late = faulty([b"hang", b"hang"], Deadline.after(1))
    assert isinstance(cut, Postponed)
    assert cut.given_s <= 1
    assert isinstance(late, Postponed)
    assert faulty.losses == {"hung": 1}  # the second was not begun


@pytest.mark.parametrize(
    ("fault", "code", "loss"),
    [
        (b"crash", 400, "died"),
        (b"killed", 413, "died"),
        (b"pickle", 400, "nonsense"),
        (b"nonsense", 400, "nonsense"),
    ],
)
def test_a_decoder_that_dies_costs_its_file_alone(
    faulty: IsolatedDecoder, png: bytes, fault: bytes, code: int, loss: str
) -> None:
    first, bad, last = faulty([png, fault, png])
    assert isinstance(bad, InputError)
    assert bad.code == code
    assert bad.hint
    assert _same(first, decoded(png))
    assert _same(last, decoded(png))
    assert faulty.losses == {loss: 2}  # the file was tried twice


def test_a_decoder_killed_by_somebody_else_costs_nothing(faulty: IsolatedDecoder, tmp_path: Path) -> None:
    [answer] = faulty([b"once" + str(tmp_path / "seen").encode()])
    assert isinstance(answer, InputError)
    assert answer.code == 400  # what the content itself deserves
    assert "known here" in answer.message or "text" in answer.message
    assert faulty.losses == {"died": 1}


def test_a_reply_that_was_not_read_is_never_that_of_the_next_file(png: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = IsolatedDecoder(budget_s=30)
    other = cv2.imencode(".png", np.zeros((64, 64), np.uint8))[1].tobytes()

    def failing(*_: object) -> None:
        raise MemoryError

    try:
        with monkeypatch.context() as patch:
            patch.setattr(isolation, "receive_reply", failing)
            [unread] = decoder([png])
        assert isinstance(unread, InputError)
        assert unread.code == 507
        following = [other, b"words", png]
        for source, read in zip(following, decoder(following), strict=True):
            assert _same(read, decoded(source))
    finally:
        decoder.close()


def test_a_fault_over_one_file_costs_no_other(
    decoder: IsolatedDecoder, png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(data: bytes) -> bool:
        return bool(data[1_000_000_000]) if data == b"DOE^JANE" else is_plain(data)

    monkeypatch.setattr(isolation, "is_plain", failing)
    first, fault, last = decoder([png, b"DOE^JANE", png])
    assert _same(first, decoded(png))
    assert _same(last, decoded(png))
    assert isinstance(fault, InputError)
    assert (fault.code, "IndexError at test_isolation.py" in fault.message) == (500, True)


def test_memory_is_bounded(tmp_path: Path) -> None:
    large = io.BytesIO()
    np.save(large, np.zeros((64, 1024, 1024), np.uint8))  # 256 MiB as float32
    with_room, without = IsolatedDecoder(budget_s=60, memory=2**30), IsolatedDecoder(budget_s=60, memory=2**27)
    try:
        [decodes], [refused] = with_room([large.getvalue()]), without([large.getvalue()])
        assert isinstance(decodes, Pixels)
        assert isinstance(refused, InputError)
        assert refused.code == 413
        assert not without.losses  # it said so itself
    finally:
        with_room.close()
        without.close()


def test_limits_hold_in_worker_and_process_alike(png: bytes, make_ct: Any, make_slice: Any) -> None:
    decoder = IsolatedDecoder(budget_s=30, limits=Limits(max_pixels=64 * 64 - 1))
    try:
        for answer in decoder([png, _ct(make_ct, make_slice, 1)]):
            assert isinstance(answer, InputError)
            assert answer.code == 413
    finally:
        decoder.close()


def test_what_cannot_be_started_is_a_fault_of_ours(png: bytes) -> None:
    decoder = IsolatedDecoder(budget_s=5, module="no_such_module")
    try:
        [answer] = decoder([png])
    finally:
        decoder.close()
    assert isinstance(answer, InputError)
    assert answer.code == 503


def test_without_a_process_nothing_is_left_open_and_the_next_may_have_one(
    png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = IsolatedDecoder(budget_s=5)
    try:
        assert not isinstance(next(iter(decoder([png]))), InputError)
        decoder.close()

        def refused(*_: object, **__: object) -> None:
            raise BlockingIOError(11, "Resource temporarily unavailable")

        before = len(list(Path("/proc/self/fd").iterdir()))
        with monkeypatch.context() as patched:
            patched.setattr(subprocess, "Popen", refused)
            answers = list(decoder([png, png]))
        assert [isinstance(a, InputError) and a.code for a in answers] == [503, 503]
        assert len(list(Path("/proc/self/fd").iterdir())) == before
        assert not isinstance(next(iter(decoder([png]))), InputError)
    finally:
        decoder.close()


def test_nothing_of_the_input_is_logged(
    faulty: IsolatedDecoder, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    list(faulty([b"crash", b"DOE^JANE"]))
    assert "died" in caplog.text
    assert "DOE" not in caplog.text + "".join(capfd.readouterr())


@pytest.mark.parametrize("is_busy", [False, True])
def test_the_decoder_dies_with_its_worker(monkeypatch: pytest.MonkeyPatch, is_busy: bool) -> None:
    monkeypatch.setenv("PYTHONPATH", str(SUPPORT))
    code = (
        "import sys; from medad_serve.serving.isolation import IsolatedDecoder\n"
        "d = IsolatedDecoder(budget_s=300, module='faulty_codec'); list(d([b'words'])); print(d.pid, flush=True)\n"
        "list(d([b'hang' if sys.argv[1] == 'True' else b'x'])); import time; time.sleep(300)"
    )
    worker = subprocess.Popen([sys.executable, "-c", code, str(is_busy)], stdout=subprocess.PIPE, text=True)
    assert worker.stdout is not None
    child = psutil.Process(int(worker.stdout.readline()))
    time.sleep(0.5)
    assert child.is_running()
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    worker.stdout.close()
    psutil.wait_procs([child], timeout=60)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_the_decoder_process_loads_no_torch_and_leaves_no_core() -> None:
    code = (
        "import sys, medad_serve.serving.decoder_process\n"
        "print([m for m in ('torch', 'onnxruntime', 'scipy', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_process_may_write_neither_a_core_dump_nor_a_log(decoder: IsolatedDecoder, png: bytes) -> None:
    list(decoder([png]))
    limits = Path(f"/proc/{decoder.pid}/limits").read_text()
    [core] = [line for line in limits.splitlines() if line.startswith("Max core file size")]
    assert core.split()[4:6] == ["0", "0"]
    assert Path(f"/proc/{decoder.pid}/fd/1").readlink() == Path(os.devnull)


def test_a_decoder_is_opened_by_the_time_and_memory_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "memory_bytes", lambda: 8 * 2**30)
    decoder = isolation.open_decoder(response_timeout_s=100, workers=4)
    assert decoder is not None
    decoder.close()
    assert (decoder.budget_s, decoder.memory) == (50, 2**30)
