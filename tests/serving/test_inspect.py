"""Archives that anybody made: read whole or refused in one line, by every reader alike."""

from __future__ import annotations

import hashlib
import io
import json
import re
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from ts.context import Context

from medad_serve.artifact import load_manifest
from medad_serve.cli.main import cli
from medad_serve.errors import MedadError
from medad_serve.export.inspection import HANDLER, MAX_TEXT, MODEL_CONFIG, TORCHSERVE_MANIFEST, read_archive
from medad_serve.export.store import INDEX, inspect, installed_handler
from medad_serve.files import sha256
from medad_serve.handlers.medad_handler import MedadHandler
from medad_serve.io import Limits

MANIFEST = "medad.json"
CONFIG = {
    "minWorkers": 1,
    "maxWorkers": 2,
    "batchSize": 8,
    "maxBatchDelay": 20,
    "responseTimeout": 120,
    "startupTimeout": 300,
    "handler": {"runtime": "onnx", "max_answer_bytes": 1000},
}
TORCHSERVE = {
    "createdOn": "22/11/2026 12:36:01",
    "runtime": "python",
    "model": {"modelName": "m", "handler": HANDLER, "modelVersion": "1.0", "configFile": MODEL_CONFIG},
    "archiverVersion": "0.12.0",
}
Members = dict[str, bytes]


@pytest.fixture(scope="module")
def members(artifact: Path) -> Members:
    """The files of an archive with a graph of a few bytes: checking reads no more of it than its digest."""
    manifest = load_manifest(artifact).model_dump(mode="json")
    for made in manifest["calibrations"].values():
        made["item"]["normal_scores"] = made["patient"]["normal_scores"] = [0.1, 0.2]
    files = {
        HANDLER: installed_handler().read_bytes(),
        "model.onnx": b"graph",
        MODEL_CONFIG: yaml.safe_dump(CONFIG, sort_keys=False).encode(),
    }
    manifest["files"] = digests(files)
    return {**files, MANIFEST: json.dumps(manifest).encode(), TORCHSERVE_MANIFEST: json.dumps(TORCHSERVE).encode()}


def digests(files: Members) -> dict[str, str]:
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def pack(members: Members, method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def covered(members: Members, **changes: bytes | None) -> Members:
    """Exchange members (``__`` for the dot) and enter them in the manifest, as its maker could."""
    changed = {name: data for name, data in members.items() if name != MANIFEST}
    for name, data in changes.items():
        changed.pop(name, None) if data is None else changed.update({name.replace("__", "."): data})
    manifest = json.loads(members[MANIFEST])
    manifest["files"] = digests({k: v for k, v in changed.items() if k != TORCHSERVE_MANIFEST})
    return {**changed, MANIFEST: json.dumps(manifest).encode()}


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes], Path]:
    def to_file(data: bytes) -> Path:
        path = tmp_path / "m.mar"
        path.write_bytes(data)
        return path

    return to_file


def refusal(mar: Path) -> str:
    """The one line with which an archive is refused, within a second and a few megabytes."""
    tracemalloc.start()
    begun = time.process_time()
    with pytest.raises(MedadError) as caught:
        read_archive(mar)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2**20
    assert time.process_time() - begun < 1
    text = str(caught.value)
    assert text.isprintable()
    assert len(text) < 600
    return text


def front_to_back(data: bytes) -> Members:
    """Read an archive as TorchServe does (java.util.zip.ZipInputStream): by the headers before each member."""
    found, at = {}, 0
    while data[at : at + 4] == b"PK\3\4":
        size, name_length, extra = struct.unpack_from("<I4xHH", data, at + 18)
        name = data[at + 30 : at + 30 + name_length].decode()
        at += 30 + name_length + extra
        found[name] = data[at : at + size]
        at += size
    return found


def test_an_archive_without_an_index_is_read_and_what_was_not_checked_is_said(
    members: Members, write: Callable[[bytes], Path]
) -> None:
    mar = write(pack(members))
    shown = CliRunner().invoke(cli, ["inspect", str(mar)])
    assert shown.exit_code == 0
    assert sha256(mar) in shown.output
    assert "Not checked: where it comes from" in shown.output
    told = json.loads(CliRunner().invoke(cli, ["inspect", str(mar), "--json"]).output)
    assert told["in_index"] is False
    assert told["manifest"] == json.loads(members[MANIFEST])
    (mar.parent / INDEX).write_text(json.dumps({"m.mar": sha256(mar)}))
    assert inspect(mar, index=False).indexed
    assert "Not checked" not in CliRunner().invoke(cli, ["inspect", str(mar)]).output


def test_an_index_that_lies_there_counts(members: Members, write: Callable[[bytes], Path]) -> None:
    mar = write(pack(members))
    for index, fault in (({}, "is not in"), ({"m.mar": "0" * 64}, "differs from its digest")):
        (mar.parent / INDEX).write_text(json.dumps(index))
        with pytest.raises(MedadError, match=fault):
            inspect(mar, index=False)


@pytest.mark.parametrize("name", ["../x", "/etc/x", "C:\\x", "a/b", "..", "MAR-INF/x", "caf\u00e9/x", "x\ny"])
def test_a_member_by_another_name_is_refused(members: Members, write: Callable[[bytes], Path], name: str) -> None:
    assert "m.mar" in refusal(write(pack({**members, name: b"x"})))


def test_a_link_is_refused(members: Members, write: Callable[[bytes], Path]) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (0o120777 if name == "model.onnx" else 0o100644) << 16
            archive.writestr(info, data)
    assert "no plain file" in refusal(write(buffer.getvalue()))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_that_stands_twice_is_refused(members: Members, write: Callable[[bytes], Path]) -> None:
    buffer = io.BytesIO(pack(members))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(HANDLER, b"import os")
    assert "twice" in refusal(write(buffer.getvalue()))


def test_bombs_are_refused_before_they_go_off(members: Members, write: Callable[[bytes], Path]) -> None:
    deflated = pack(covered(members, model__onnx=bytes(2**28)), zipfile.ZIP_DEFLATED)
    assert "compressed" in refusal(write(deflated))
    large = pack({**members, MANIFEST: b" " * (MAX_TEXT[MANIFEST] + 1)})
    assert "larger than such a file can be" in refusal(write(large))
    entry = b"PK\1\2" + bytes(24) + struct.pack("<H", 1) + bytes(16) + b"x"
    crowd = entry * 200_000
    end = b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 0xFFFF, 0xFFFF, len(crowd), 0, 0)
    assert "no readable archive" in refusal(write(crowd + end))
    nested = pack(covered(members, **{TORCHSERVE_MANIFEST: b"[" * 60_000}))
    assert "RecursionError" in refusal(write(nested))
    aliases = ["a: &a [1, 1]"] + [f"{chr(98 + n)}: &{chr(98 + n)} [*{chr(97 + n)}, *{chr(97 + n)}]" for n in range(25)]
    merges = ["a: &a {x: 1}"]
    for n in range(12):
        merges.append(f"{chr(98 + n)}: &{chr(98 + n)} {{<<: [{', '.join([f'*{chr(97 + n)}'] * 8)}]}}")
    for lines in (aliases, merges):
        text = "\n".join(lines).encode()
        assert "by aliases" in refusal(write(pack(covered(members, **{MODEL_CONFIG: text}))))


@pytest.mark.parametrize("where", ["front", "between", "before the directory", "end"])
def test_what_only_one_reader_would_see_is_refused(
    members: Members, write: Callable[[bytes], Path], where: str
) -> None:
    """A module between two members: TorchServe would unpack it, Python's directory does not name it."""
    data = pack(members)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        starts = {"front": 0, "between": archive.infolist()[2].header_offset}
        starts |= {"before the directory": archive.start_dir, "end": len(data)}
    at = starts[where]
    hidden = pack({"numpy.py": b"print('mine')"})
    hidden = hidden[: hidden.index(b"PK\1\2")]
    altered = bytearray(data[:at] + hidden + data[at:])
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        directory = archive.start_dir + (len(hidden) if where != "end" else 0)
        for info in archive.infolist():  # offsets in the directory follow what they point at
            entry = altered.index(b"PK\1\2", directory)
            moved = info.header_offset + (len(hidden) if info.header_offset >= at else 0)
            struct.pack_into("<I", altered, entry + 42, moved)
            directory = entry + 46
    if where != "end":
        struct.pack_into("<I", altered, len(altered) - 6, archive.start_dir + len(hidden))
        assert "numpy.py" in front_to_back(bytes(altered))
    assert refusal(write(bytes(altered)))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"null",
        b'{"model": []}',
        b'{"runtime": 1}',
        b"\xff",
        b'{"model": {"handler": {}}}',
        b'{"a":1,"a":2}',
    ],
)
def test_a_torchserve_manifest_of_other_shape_is_refused(
    members: Members, write: Callable[[bytes], Path], text: bytes
) -> None:
    refusal(write(pack(covered(members, **{TORCHSERVE_MANIFEST: text}))))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"a: b: c",
        b"!!python/object/apply:os.system [id]",
        b"\xff\xfe",
        b"2001-99-99",
        b"? [a]\n: b",
        yaml.safe_dump({**CONFIG, "parallelType": "pp"}).encode(),
        yaml.safe_dump({**CONFIG, "minWorkers": "many"}).encode(),
        yaml.safe_dump({**CONFIG, "handler": {"runtime": ["onnx"]}}).encode(),
        yaml.safe_dump({**CONFIG, "handler": {"limits": {"max_frames": 0}}}).encode(),
        yaml.safe_dump({**CONFIG, "handler": {"limits": {"max_fame": 1}}}).encode(),
        yaml.safe_dump({**CONFIG, "handler": {"limits": ["max_frames"]}}).encode(),
    ],
)
def test_a_model_configuration_that_archive_would_not_write_is_refused(
    members: Members, write: Callable[[bytes], Path], text: bytes
) -> None:
    refusal(write(pack(covered(members, **{MODEL_CONFIG: text}))))


def test_limits_that_were_archived_are_shown_and_those_of_no_input_refused(artifact: Path, tmp_path: Path) -> None:
    pack = ["archive", str(artifact), "--store", str(tmp_path), "--name", "m"]
    made = CliRunner().invoke(cli, [*pack, "--limit", "max_frames=512", "--limit", "max_bytes=100000"])
    assert made.exit_code == 0, made.output
    shown = CliRunner().invoke(cli, ["inspect", str(tmp_path / "m.mar")])
    assert re.search("^limits +max_bytes=100000, max_frames=512$", shown.output, re.MULTILINE)
    handler = MedadHandler()
    with zipfile.ZipFile(tmp_path / "m.mar") as packed:
        packed.extractall(tmp_path / "m")
    config = yaml.safe_load((tmp_path / "m" / MODEL_CONFIG).read_text())
    assert config["handler"]["limits"] == {"max_bytes": 100000, "max_frames": 512}
    handler.initialize(Context("m", str(tmp_path / "m"), {}, 8, None, "0.12.0", model_yaml_config=config))
    assert handler.decoder is not None
    handler.decoder.close()
    assert handler.limits == handler.decoder.limits == Limits(max_bytes=100000, max_frames=512)
    for limit in ("max_frames", "max_frames=0", "max_frames=many", "max_fame=5"):
        refused = CliRunner().invoke(cli, [*pack, "--limit", limit])
        assert refused.exit_code
        assert "max_f" in refused.output + str(refused.exception)


def test_nothing_of_an_archive_reaches_the_terminal_raw(members: Members, write: Callable[[bytes], Path]) -> None:
    manifest = json.loads(members[MANIFEST])
    manifest["name"] = "\x1b[2Jclean"
    manifest["refused"] = {"onnx/int8": "AUROC\x1b[2J falls"}
    mar = write(pack({**members, MANIFEST: json.dumps(manifest).encode()}))
    shown = CliRunner().invoke(cli, ["inspect", str(mar)])
    assert shown.exit_code == 0
    assert "\x1b" not in shown.output
    assert re.search("^left out +onnx/int8: AUROC.*falls$", shown.output, re.MULTILINE)
    manifest["\x1b[2J" * 1000] = 1
    refusal(write(pack({**members, MANIFEST: json.dumps(manifest).encode()})))


FUZZ = settings(max_examples=150)


@FUZZ
@given(data=st.data())
def test_mutated_bytes_are_refused_in_one_line_or_read_alike_by_all(
    members: Members, write: Callable[[bytes], Path], data: st.DataObject
) -> None:
    mutated = bytearray(pack(members))
    structure = [i for mark in (b"PK\3\4", b"PK\1\2", b"PK\5\6") for i in _places(mutated, mark)]
    for _ in range(data.draw(st.integers(1, 4))):
        near = data.draw(st.sampled_from(structure)) + data.draw(st.integers(0, 60))
        at = min(data.draw(st.one_of(st.just(near), st.integers(0, len(mutated) - 1))), len(mutated) - 1)
        action = data.draw(st.sampled_from(["set", "cut", "insert", "end"]))
        new = data.draw(st.binary(min_size=1, max_size=8))
        if action == "set":
            mutated[at : at + len(new)] = new
        elif action == "insert":
            mutated[at:at] = new
        else:
            del mutated[at : at + len(new) if action == "cut" else None]
        if not mutated:
            return
    if not fault(write(bytes(mutated))):
        assert front_to_back(bytes(mutated)) == members


def fault(mar: Path) -> str:
    """What `inspect` says of a file that may be good: nothing, or one line; anything else it raises fails the test."""
    try:
        read_archive(mar)
    except MedadError as error:
        text = str(error)
    else:
        return ""
    assert text.isprintable()
    assert len(text) < 600
    return text


def _places(data: bytearray, mark: bytes) -> list[int]:
    return [i for i in range(len(data)) if data.startswith(mark, i)]


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@FUZZ
@given(data=st.data())
def test_values_of_other_types_are_refused_in_one_line(
    members: Members, write: Callable[[bytes], Path], data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from([MANIFEST, MODEL_CONFIG, TORCHSERVE_MANIFEST]))
    tree: Any = yaml.safe_load(members[name]) if name == MODEL_CONFIG else json.loads(members[name])
    parent, key = tree, data.draw(st.sampled_from(sorted(tree)))
    while isinstance(parent[key], dict | list) and parent[key] and data.draw(st.booleans()):
        parent = parent[key]
        key = data.draw(st.sampled_from(sorted(parent) if isinstance(parent, dict) else range(len(parent))))
    parent[key] = data.draw(ANYTHING)
    text = (yaml.safe_dump(tree) if name == MODEL_CONFIG else json.dumps(tree)).encode()
    changed = {**members, name: text} if name == MANIFEST else covered(members, **{name: text})
    fault(write(pack(changed)))
