from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from medad_serve.artifact import MANIFEST, load_manifest, locate
from medad_serve.errors import MedadError
from medad_serve.files import whole_directory, write_whole
from medad_serve.spec import SCHEMA_VERSION


@pytest.fixture
def copy(artifact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(artifact, tmp_path / "artifact"))


def _edit(copy: Path, **fields: object) -> None:
    data = json.loads((copy / MANIFEST).read_text())
    (copy / MANIFEST).write_text(json.dumps({**data, **fields}))


def test_manifest_says_what_was_exported(artifact: Path) -> None:
    manifest = load_manifest(artifact)
    assert set(manifest.files) == {"model.onnx", "model.ts"}
    assert set(manifest.calibrations) == {"onnx/float32", "torchscript/float32"}
    assert [o.name for o in manifest.outputs] == ["score", "heatmap", "reconstruction"]
    assert manifest.input_shape == (1, 64, 64)
    assert manifest.prep.window.center == 40
    assert manifest.packages["torch"]


@pytest.mark.parametrize("name", ["model.onnx", "model.ts"])
def test_an_altered_file_is_named(copy: Path, name: str) -> None:
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(bytes(data))
    with pytest.raises(MedadError, match=f"{name} differs from its digest"):
        load_manifest(copy)


def test_a_missing_file_is_named(copy: Path) -> None:
    (copy / "model.onnx").unlink()
    with pytest.raises(MedadError, match=r"model\.onnx is missing"):
        load_manifest(copy)


def test_faults_of_the_manifest_are_named(copy: Path) -> None:
    _edit(copy, schema_version=99)
    with pytest.raises(MedadError, match="schema version 99"):
        load_manifest(copy)
    _edit(copy, schema_version=SCHEMA_VERSION, surprise=1)
    with pytest.raises(MedadError, match="surprise"):
        load_manifest(copy)
    (copy / MANIFEST).write_text("{")
    with pytest.raises(MedadError, match="not JSON"):
        load_manifest(copy)
    (copy / MANIFEST).unlink()
    with pytest.raises(MedadError, match=r"medad\.json is missing"):
        load_manifest(copy)


def test_files_outside_the_artifact_are_refused(copy: Path) -> None:
    _edit(copy, files={"../secret": "0"})
    with pytest.raises(MedadError, match="outside the artifact"):
        load_manifest(copy)


def test_a_failed_write_leaves_the_old_directory(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with whole_directory(target) as beside:
        (beside / "a").write_text("old")

    def fail() -> None:
        with whole_directory(target) as beside:
            (beside / "a").write_text("new")
            raise ValueError

    with pytest.raises(ValueError):
        fail()
    assert (target / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    with whole_directory(target) as beside:
        (beside / "b").write_text("new")
    assert [p.name for p in target.iterdir()] == ["b"]


def test_a_failed_file_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_whole(path, "old")
    with pytest.raises(TypeError):
        write_whole(path, None)  # type: ignore[arg-type]
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_pipe_is_written_to_and_stays_what_it_is(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_whole(pipe, "content")
        assert os.read(reader, 100) == b"content"
    finally:
        os.close(reader)
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


def test_the_old_directory_comes_back_where_the_last_step_fails(tmp_path: Path, monkeypatch) -> None:
    target = tmp_path / "out"
    with whole_directory(target) as beside:
        (beside / "a").write_text("old")
    real = Path.rename

    def full_disk(self: Path, to: Path) -> Path:
        if to == target and not self.name.endswith(".old"):
            raise OSError(28, "No space left on device")
        return real(self, to)

    monkeypatch.setattr(Path, "rename", full_disk)

    def replace() -> None:
        with whole_directory(target) as beside:
            (beside / "a").write_text("new")

    with pytest.raises(OSError, match="No space"):
        replace()
    assert (target / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_of_two_writers_of_the_same_the_first_stays(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with whole_directory(target, keep=True) as mine:
        with whole_directory(target, keep=True) as other:
            (other / "a").write_text("first")
        (mine / "a").write_text("second")
    assert (target / "a").read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_rights_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        write_whole(tmp_path / "a", "x")
        with whole_directory(tmp_path / "d"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "d").stat().st_mode & 0o777 == 0o700


def test_the_newest_run_is_meant_even_if_not_exported(artifact: Path, tmp_path: Path) -> None:
    for name in ("20260101-000000", "20260102-000000"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("")
    shutil.copytree(artifact, tmp_path / "20260101-000000" / "artifact")
    assert locate(tmp_path / "20260101-000000") == tmp_path / "20260101-000000" / "artifact"
    with pytest.raises(MedadError, match=r"20260102-000000/artifact is no artifact"):
        load_manifest(locate(tmp_path))
    assert locate(artifact) == artifact


def test_no_path_of_this_machine_travels(artifact: Path) -> None:
    onnx_file = (artifact / "model.onnx").read_bytes()
    assert str(Path(torch.__file__).parent).encode() not in onnx_file
    assert b".py" not in onnx_file


def test_killed_while_writing_there_is_no_half_directory(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from medad_serve.files import whole_directory\n"
        "with whole_directory(Path(sys.argv[1])) as d:\n"
        "    (d / 'a').write_text('x'); print('ready', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "out")], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == b"ready"
    time.sleep(0.05)
    process.kill()
    process.wait()
    assert not (tmp_path / "out").exists()
