from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path

import fsspec
import pytest
import yaml
from click.testing import CliRunner
from fake_aws import SOMEBODY, FakeAws
from written import digests, table

from medad_serve.cli.main import cli
from medad_serve.data import read_table, remote
from medad_serve.data.remote import mirrored
from medad_serve.errors import MedadError

URL = "s3://bucket/set"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEDAD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    for name in ("NORMAL/a_1.npy", "NORMAL/b_1.npy", "CNV/c_1.npy"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode() * 50)
    return folder


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that are fetched."""
    names: list[str] = []
    plain = remote._Mirror._fetch_one

    def spy(self, name, entry):
        names.append(name)
        return plain(self, name, entry)

    monkeypatch.setattr(remote._Mirror, "_fetch_one", spy)
    return names


def test_the_mirror_holds_what_the_bucket_holds(aws: FakeAws, source: Path, cache: Path) -> None:
    aws.upload(source, "bucket", "set")
    place = mirrored(URL)
    assert digests(place) == digests(source)
    assert place.name == "set"
    assert place.is_relative_to(cache)
    assert not [p for p in cache.rglob("*") if "incoming" in p.parts]
    assert place.parents[1].stat().st_mode & 0o077 == 0


def test_only_what_is_new_or_changed_is_fetched(aws: FakeAws, source: Path, fetched: list[str]) -> None:
    aws.upload(source, "bucket", "set")
    mirrored(URL)
    assert sorted(fetched) == ["CNV/c_1.npy", "NORMAL/a_1.npy", "NORMAL/b_1.npy"]
    fetched.clear()
    assert mirrored(URL + "/") == mirrored(URL)
    assert not fetched
    s3 = aws.client("s3")
    same_size = b"x" * len((source / "NORMAL/a_1.npy").read_bytes())
    s3.put_object(Bucket="bucket", Key="set/NORMAL/a_1.npy", Body=same_size)
    s3.put_object(Bucket="bucket", Key="set/NORMAL/d_1.npy", Body=b"new")
    s3.delete_object(Bucket="bucket", Key="set/CNV/c_1.npy")
    place = mirrored(URL)
    assert sorted(fetched) == ["NORMAL/a_1.npy", "NORMAL/d_1.npy"]
    assert (place / "NORMAL/a_1.npy").read_bytes() == same_size
    assert not (place / "CNV").exists()


def test_a_file_altered_in_the_mirror_is_fetched_again(aws: FakeAws, source: Path, fetched: list[str]) -> None:
    aws.upload(source, "bucket", "set")
    place = mirrored(URL)
    fetched.clear()
    (place / "NORMAL/a_1.npy").write_bytes(b"damaged")
    (place / "stray.npy").write_bytes(b"stray")
    assert digests(mirrored(URL)) == digests(source)
    assert fetched == ["NORMAL/a_1.npy"]


def test_a_stop_midway_keeps_what_was_fetched(aws: FakeAws, source: Path, fetched: list[str], monkeypatch) -> None:
    aws.upload(source, "bucket", "set")
    with monkeypatch.context() as patch:
        patch.setattr(remote, "THREADS", 1)
        seen = remote._Mirror._fetch_one

        def stop_at_second(self, name, entry):
            if len(fetched) == 1:
                raise MedadError("stopped")
            return seen(self, name, entry)

        patch.setattr(remote._Mirror, "_fetch_one", stop_at_second)
        with pytest.raises(MedadError, match="stopped"):
            mirrored(URL)
    first = list(fetched)
    fetched.clear()
    assert digests(mirrored(URL)) == digests(source)
    assert sorted([*first, *fetched]) == sorted(digests(source))


def test_two_processes_may_mirror_one_url_at_once(aws: FakeAws, source: Path, cache: Path) -> None:
    aws.upload(source, "bucket", "set")
    code = f"from medad_serve.data.remote import mirrored; print(mirrored({URL!r}))"
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    places = [process.communicate(timeout=120)[0].strip() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert places[0] == places[1]
    assert digests(Path(places[0])) == digests(source)


def test_names_never_lead_out_of_the_mirror(aws: FakeAws, source: Path, cache: Path, capsys) -> None:
    aws.upload(source, "bucket", "set")
    for name in ("set/../../../escaped", "set//double", "set/NORMAL"):  # NORMAL is a folder of others
        aws.client("s3").put_object(Bucket="bucket", Key=name, Body=b"x")
    assert digests(mirrored(URL)) == digests(source)
    assert "3 files of s3://bucket/set left out" in capsys.readouterr().err
    assert not list(cache.rglob("escaped"))


def test_a_url_of_another_endpoint_is_another_mirror(aws: FakeAws, source: Path, monkeypatch) -> None:
    aws.upload(source, "bucket", "set")
    first = mirrored(URL)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", aws.url.replace("127.0.0.1", "localhost"))
    assert mirrored(URL) != first


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("s3://nobucket/set", "there is nothing at s3://nobucket/set"),
        ("s3://bucket/none", "there is no file below s3://bucket/none"),
        ("s3://bucket/set/CNV/c_1.npy", "is one file, not a folder"),
        ("s3://user:word@bucket/set", "holds a password"),
        ("gs://bucket/set", "its package is not installed"),
        ("nonsense://bucket/set", "is no known storage"),
    ],
)
def test_faults_are_one_line(aws: FakeAws, source: Path, url: str, says: str) -> None:
    aws.upload(source, "bucket", "set")
    with pytest.raises(MedadError, match=says) as refused:
        mirrored(url)
    assert "\n" not in str(refused.value)
    assert "word" not in str(refused.value).replace("password", "")


def test_without_credentials_the_error_says_what_to_set(aws: FakeAws, monkeypatch) -> None:
    for name in SOMEBODY:
        monkeypatch.delenv(name)
    with pytest.raises(MedadError, match=r"no usable AWS credentials.*AWS_ACCESS_KEY_ID"):
        mirrored(URL)


def test_wrong_keys_and_missing_rights_are_told_apart(aws: FakeAws, source: Path, monkeypatch) -> None:
    aws.upload(source, "bucket", "set")
    iam = aws.client("iam")
    iam.create_user(UserName="reader")
    key = iam.create_access_key(UserName="reader")["AccessKey"]
    aws.require_rights()
    with pytest.raises(MedadError, match="are not accepted"):
        mirrored(URL)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
    with pytest.raises(MedadError, match=r"access to s3://bucket/set is denied"):
        mirrored(URL)


def test_an_endpoint_that_is_not_there_is_one_line(aws: FakeAws, monkeypatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(MedadError, match=r"s3://bucket/set cannot be reached.*AWS_ENDPOINT_URL"):
        mirrored(URL)


def test_without_s3fs_the_error_names_the_extra(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(import_module("fsspec.registry")._registry, "s3", raising=False)  # or it is remembered
    with pytest.raises(MedadError, match=r"pip install 'medad-serve\[aws\]'"):
        mirrored(URL)


def test_a_full_disk_is_told_before_anything_is_fetched(aws: FakeAws, source: Path, fetched, monkeypatch) -> None:
    aws.upload(source, "bucket", "set")
    usage = remote.shutil.disk_usage(source)
    monkeypatch.setattr(remote.shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(MedadError, match=r"are free in .*MEDAD_CACHE"):
        mirrored(URL)
    assert not fetched


@pytest.mark.parametrize("storage", ["memory", "file"])
def test_other_storages_mirror_too(storage: str, source: Path, fetched: list[str]) -> None:
    url = f"file://{source}"
    if storage == "memory":
        url = "memory://bucket/set"
        fsspec.filesystem("memory").put(f"{source}/", "/bucket/set/", recursive=True)
    assert digests(mirrored(url)) == digests(source)
    fetched.clear()
    mirrored(url)
    assert not fetched


def test_a_web_folder_mirrors_too(source: Path, fetched: list[str]) -> None:
    (source / "CNV" / "d e_1.npy").write_bytes(b"a blank in its name")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(source.parent)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/source"
        assert digests(mirrored(url)) == digests(source)
        fetched.clear()
        mirrored(url)
        assert not fetched
        (source / "CNV" / "c_1.npy").write_bytes(b"changed")
        assert digests(mirrored(url)) == digests(source)
        assert fetched == ["CNV/c_1.npy"]
    finally:
        server.shutdown()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_a_remote_csv_brings_the_files_beside_it(aws: FakeAws, source: Path) -> None:
    (source / "table.csv").write_text("path,label\nNORMAL/a_1.npy,0\nCNV/c_1.npy,1\n")
    aws.upload(source, "bucket", "set")
    found = read_table(f"csv:{URL}/table.csv")
    assert [(s.path.name, s.label) for s in found.samples] == [("a_1.npy", 0), ("c_1.npy", 1)]
    assert read_table(f"csv:{URL}").samples == found.samples


@pytest.mark.slow
def test_class_folders_of_a_bucket_train(aws: FakeAws, cq500: Path, dicom_files: list[Path], tmp_path: Path) -> None:
    labels = {row["name"].replace("-CT-", "CT"): row["R1:ICH"] for row in table(cq500 / "reads.csv")}
    for number, path in enumerate(dicom_files):
        patient = path.parts[-4].split()[0]
        target = tmp_path / "classes" / ("bleed" if labels[patient] == "1" else "normal") / f"{patient}_{number}.dcm"
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(path, target)
    aws.upload(tmp_path / "classes", "bucket", "heads")
    settings = ["train.max_epochs=1", "settings.hidden_dim=16", "calibration.policy=specificity=0.8"]
    settings += ["calibration.method=held_out", f"--runs={tmp_path / 'runs'}"]
    command = ["train", "ae", "--data", "folders:s3://bucket/heads", *settings]
    done = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert done.exit_code == 0
    assert done.stderr.count(f"mirroring {len(dicom_files)} files") == 1
    run = Path(done.stdout.strip())
    assert (run / "finished").is_file()
    assert yaml.safe_load((run / "config.yaml").read_text())["data"] == "folders:s3://bucket/heads"
    roles = json.loads((run / "split.json").read_text())["roles"]
    assert set(roles) == set(labels)
