"""Archives: whole or absent, covered by digests, refused when anything in them is not ours."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from medad_serve.artifact import load_manifest, write_manifest
from medad_serve.errors import MedadError
from medad_serve.export.archive import archive
from medad_serve.export.inspection import HANDLER, MODEL_CONFIG
from medad_serve.export.store import (
    INDEX,
    LOGGING,
    inspect,
    installed_handler,
    private_logging,
    read_properties,
    verify,
)
from medad_serve.files import sha256

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def packed(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return archive(artifact, tmp_path_factory.mktemp("store"), name="m")


@pytest.fixture
def mar(packed: Path, tmp_path: Path) -> Path:
    """A copy of the archive in a store of its own, free to be damaged."""
    for file in (packed, packed.parent / INDEX):
        shutil.copy(file, tmp_path)
    return tmp_path / packed.name


def rewrite(mar: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    """Change members and enter the result in the index, as one with access to the whole store could."""
    with zipfile.ZipFile(mar) as old:
        members = {name: old.read(name) for name in old.namelist()}
    change(members)
    with zipfile.ZipFile(mar, "w") as new:
        for name, data in members.items():
            new.writestr(name, data)
    (mar.parent / INDEX).write_text(json.dumps({mar.name: sha256(mar)}))


def test_the_archive_verifies_and_its_manifest_covers_every_member(packed: Path, artifact: Path) -> None:
    manifest = verify(packed)
    source = load_manifest(artifact)
    assert set(manifest.files) == {"model.onnx", HANDLER, MODEL_CONFIG}, "the graph that is served, and no other"
    assert manifest.files["model.onnx"] == source.files["model.onnx"]
    assert manifest.model_copy(update={"files": source.files}) == source
    with zipfile.ZipFile(packed) as members:
        assert set(members.namelist()) == {*manifest.files, "medad.json", "MAR-INF/MANIFEST.json"}
        assert members.read(HANDLER) == installed_handler().read_bytes()


def test_the_unpacked_archive_is_an_artifact(packed: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(packed) as members:
        members.extractall(tmp_path)
    assert load_manifest(tmp_path) == verify(packed)


def test_the_model_configuration_says_what_was_asked(artifact: Path, tmp_path: Path) -> None:
    mar = archive(artifact, tmp_path, name="m", runtime="torchscript", workers=3, batch_size=5, max_batch_delay_ms=7)
    config = inspect(mar).archive.config
    assert (config.minWorkers, config.maxWorkers, config.batchSize, config.maxBatchDelay) == (3, 3, 5, 7)
    assert config.handler.model_dump(exclude={"limits"}) == {
        "runtime": "torchscript/float32",
        "max_answer_bytes": 67108864,
    }


def test_the_committed_settings_are_the_packaged_ones() -> None:
    packaged = files("medad_serve").joinpath("config.properties").read_bytes()
    assert (ROOT / "model_store" / "config.properties").read_bytes() == packaged


def test_the_committed_logging_is_the_one_that_archive_writes(packed: Path) -> None:
    committed = (ROOT / "model_store" / LOGGING).read_bytes()
    assert committed == private_logging()
    assert (packed.parent / LOGGING).read_bytes() == committed
    layouts = committed.count(b"<PatternLayout")
    assert layouts == committed.count(b'alwaysWriteExceptions="false"') == committed.count(b"(thrown in %ex{")


def test_a_new_store_points_at_its_own_logging(artifact: Path, tmp_path: Path) -> None:
    for name in ("plain", "with space"):
        archive(artifact, tmp_path / name)
        place = read_properties(tmp_path / name / "config.properties")["vmargs"].partition("=")[2]
        assert Path(unquote(urlsplit(place).path)) == tmp_path / name / LOGGING
        assert " " not in place


def test_settings_of_the_store_are_kept(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "config.properties").write_text("max_response_size=1234\n")
    mar = archive(artifact, tmp_path)
    assert (tmp_path / "config.properties").read_text() == "max_response_size=1234\n"
    assert inspect(mar).archive.config.handler.max_answer_bytes == 1234


@pytest.mark.parametrize("name", ["a/b", "..", "a b", "-a", "a.b", "é", "x" * 200])
def test_a_name_that_cannot_stand_in_a_url_is_refused(artifact: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(MedadError, match="cannot name a model"):
        archive(artifact, tmp_path, name=name)


def test_a_runtime_that_was_not_exported_is_refused(artifact: Path, tmp_path: Path) -> None:
    shutil.copytree(artifact, tmp_path / "onnx")
    (tmp_path / "onnx" / "model.ts").unlink()
    write_manifest(tmp_path / "onnx", load_manifest(artifact))
    with pytest.raises(MedadError, match=r"does not hold model\.ts"):
        archive(tmp_path / "onnx", tmp_path / "store", runtime="torchscript")
    with pytest.raises(MedadError, match="was not exported for openvino/int8. It has: onnx/float32"):
        archive(artifact, tmp_path / "store", runtime="openvino/int8")


def test_an_altered_artifact_is_refused(artifact: Path, tmp_path: Path) -> None:
    shutil.copytree(artifact, tmp_path / "a")
    with (tmp_path / "a" / "model.onnx").open("ab") as graph:
        graph.write(b"x")
    with pytest.raises(MedadError, match=r"model\.onnx differs"):
        archive(tmp_path / "a", tmp_path / "store")
    assert not list((tmp_path / "store").glob("*.mar"))


def test_folders_with_commas_and_wildcards_in_their_names(artifact: Path, tmp_path: Path) -> None:
    assert verify(archive(artifact, tmp_path / "a,b [*] c")).name == load_manifest(artifact).name


def test_a_temporary_folder_of_the_models_name_is_left_alone(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch-model-archiver by itself deletes it."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "mine").write_text("keep")
    archive(artifact, tmp_path / "store", name="m")
    assert (tmp_path / "m" / "mine").read_text() == "keep"


def test_archiving_again_replaces_archive_and_digest(mar: Path, artifact: Path) -> None:
    before = sha256(mar)
    archive(artifact, mar.parent, name="m", workers=2)
    assert sha256(mar) != before
    assert verify(mar)


def test_archivers_at_the_same_time_lose_no_entry(artifact: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        mars = list(pool.map(lambda n: archive(artifact, tmp_path, name=f"m{n}"), range(8)))
    assert all(verify(mar) for mar in mars)
    assert not list(tmp_path.glob(".archive-*"))


def test_a_kill_leaves_a_whole_archive_or_none(artifact: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from medad_serve.export.archive import archive\n"
        "print('go', flush=True); archive(Path(sys.argv[1]), Path(sys.argv[2]), name='m')"
    )
    ends = []
    for delay in (0.0, 0.02, 0.05, 0.08, 0.12, 0.2):
        store = tmp_path / str(delay)
        process = subprocess.Popen([sys.executable, "-c", code, str(artifact), str(store)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        found = list(store.glob("*.mar"))
        ends.append(len(found))
        for mar in found:
            assert zipfile.ZipFile(mar).testzip() is None
        assert verify(archive(artifact, store, name="m"))
        assert not list(store.glob(".archive-*"))
    assert 0 in ends


def test_a_changed_byte_is_refused_by_name(mar: Path) -> None:
    data = bytearray(mar.read_bytes())
    data[len(data) // 2] ^= 1
    mar.write_bytes(data)
    with pytest.raises(MedadError, match=r"m\.mar differs from its digest"):
        verify(mar)


def test_an_archive_outside_the_index_is_refused(mar: Path) -> None:
    (mar.parent / INDEX).write_text("{}")
    with pytest.raises(MedadError, match=r"m\.mar is not in .*index\.json"):
        verify(mar)


@pytest.mark.parametrize("content", ["", "[]", '{"m.mar": 1}'])
def test_an_unreadable_index_is_named(mar: Path, content: str) -> None:
    (mar.parent / INDEX).write_text(content)
    with pytest.raises(MedadError, match=r"index\.json is not readable"):
        verify(mar)


def test_what_is_no_archive_is_refused(mar: Path) -> None:
    mar.write_bytes(b"PK not a zip")
    (mar.parent / INDEX).write_text(json.dumps({mar.name: sha256(mar)}))
    with pytest.raises(MedadError, match="no readable archive"):
        verify(mar)


def test_an_exchanged_graph_is_refused(mar: Path) -> None:
    rewrite(mar, lambda members: members.update({"model.onnx": b"other"}))
    with pytest.raises(MedadError, match=r"m\.mar/model\.onnx differs"):
        verify(mar)


@pytest.mark.parametrize("name", ["../evil.py", "/evil.py", "sub/evil.py", "..\\evil.py", ".."])
def test_a_member_outside_the_folder_is_refused(mar: Path, name: str) -> None:
    rewrite(mar, lambda members: members.update({name: b""}))
    with pytest.raises(MedadError, match="outside its folder"):
        verify(mar)


def test_a_module_beside_the_handler_is_refused(mar: Path) -> None:
    """The worker would import it before the installed one of that name."""
    rewrite(mar, lambda members: members.update({"numpy.py": b"print('mine')"}))
    with pytest.raises(MedadError, match="does not hold exactly"):
        verify(mar)


def test_a_foreign_handler_is_refused_even_with_digests_in_order(mar: Path) -> None:
    def exchange(members: dict[str, bytes]) -> None:

        members[HANDLER] = b"import os"
        manifest = json.loads(members["medad.json"])
        manifest["files"][HANDLER] = hashlib.sha256(members[HANDLER]).hexdigest()
        members["medad.json"] = json.dumps(manifest).encode()

    rewrite(mar, exchange)
    with pytest.raises(MedadError, match="another handler than the one installed"):
        verify(mar)


@pytest.mark.parametrize("change", [{"handler": "os:system"}, {"requirementsFile": "r.txt"}, {"configFile": "x.yaml"}])
def test_torchserves_manifest_may_name_only_our_code(mar: Path, change: dict[str, str]) -> None:
    def exchange(members: dict[str, bytes]) -> None:
        manifest = json.loads(members["MAR-INF/MANIFEST.json"])
        manifest["model"] |= change
        members["MAR-INF/MANIFEST.json"] = json.dumps(manifest).encode()

    rewrite(mar, exchange)
    with pytest.raises(MedadError, match="names other code"):
        verify(mar)
